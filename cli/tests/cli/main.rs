//! `ballast` as its users meet it: real processes on a tiny random model.

mod bad_input;
mod commands;
mod configuration;
mod scene;
