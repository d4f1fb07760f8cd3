//! Control plane and data plane of a run.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod data;
mod disk;
pub mod evaluation;
mod json;
pub mod ledger;
pub mod membership;
pub mod report;
pub mod security;
pub mod server;
#[cfg(feature = "simulation")]
pub mod simulation;
mod site;

pub use site::Site;
