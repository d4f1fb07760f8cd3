//! The trainer: one rank of a run.
//!
//! [`trainer::Trainer`] is the step loop. It drives a [`model::Decoder`] over the [`ballast_kernels::Backend`]
//! contract, sums gradients as integers ([`exact`]) over a [`collective::Collective`], and applies AdamW. [`run`] is
//! the conversation with the coordinator around it.
#![forbid(unsafe_code)]

pub mod collective;
mod device;
mod error;
pub mod evaluate;
pub mod exact;
pub mod generate;
pub mod lora;
pub mod machine;
pub mod memory;
pub mod model;
mod nonfinite;
mod objective;
pub mod optimizer;
mod packed;
pub mod progress;
pub mod schedule;
mod session;
#[cfg(feature = "simulation")]
pub mod simulation;
mod state;
mod sums;
mod timing;
pub mod trainer;

pub use device::Device;
pub use error::WorkerError;
pub use session::{WorkerOptions, run};
