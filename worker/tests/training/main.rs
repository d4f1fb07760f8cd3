//! What the trainer promises, on the CPU backend: parity with PEFT, gradients of every variant of the decoder, the same
//! bits however the work is divided or activations are kept, planned memory, and decoding that agrees with training. And
//! what whole models compute on every backend, beside an f64 reference.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(missing_docs)]

mod checkpointing;
#[cfg(feature = "cuda")]
mod cuda_memory;
mod decoding;
mod exactness;
mod given_up;
mod gradients;
mod memory;
mod overlap;
mod parity;
mod resume;
mod shared_prefix;
mod skipping;
mod support;
mod whole_model;
