//! Control plane and data plane of a run.
#![forbid(unsafe_code)]

pub mod config;
