//! Ballast beside reference implementations, and as real processes.
//!
//! [`golden`] reads a training run that PEFT made; [`parity`] trains the same and measures the distance. The tests
//! start real `ballast` processes ([`process`], [`cluster`]) on a random model ([`tiny`]).
#![forbid(unsafe_code)]

pub mod cluster;
pub mod golden;
pub mod parity;
pub mod process;
pub mod tiny;
