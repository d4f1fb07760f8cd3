//! Tensor operations of LoRA training: the [`Backend`] contract and its implementations.
//!
//! The contract speaks in the operations that a fast device wants, not in a tensor algebra: every method is one fused
//! pass over memory. [`cpu::CpuBackend`] implements it in f32; [`reference`] holds an f64 version of each operation,
//! and [`conformance`] compares any backend with it at ragged shapes. [`dry_run::DryRun`] computes nothing and counts
//! memory.
//!
//! # Exactness
//! For one binary on one kind of device, the bits of every result are a function of the operands and their shapes
//! alone: never of the number of threads, of time, or of what ran before.

#![deny(unsafe_code)]

mod adamw;
mod arena;
mod check;
mod contract;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dry_run;
mod error;
mod footprint;
mod free_list;
mod layout;
mod philox;
mod slabs;
mod storage;

#[cfg(any(test, feature = "reference"))]
pub mod conformance;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use contract::{
    AdamW, AttentionShape, Backend, Bucket, Direction, Dropout, FLAG_NOT_FINITE, GatedActivation, LoraPath, NormKind,
    Segment, Target,
};
pub use error::KernelError;
pub use footprint::{Footprint, LowRank};
pub use layout::PackedLayout;
pub use philox::Philox;
pub use storage::Storage;
