//! `ballast` as its users meet it: real processes on a tiny random model.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod bad_input;
mod commands;
mod configuration;
mod scene;
mod security;
