//! Reading a base model from disk: where it lies, what it is, its weights, its tokenizer.
//!
//! Both the coordinator (tokenizer, chat template, hash) and the workers (weights) need it; it knows neither the
//! network protocol nor any tensor operation.
#![forbid(unsafe_code)]

mod architecture;

pub use architecture::{Activation, Architecture, Projection, RotaryScaling};
