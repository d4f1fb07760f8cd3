//! An f64 version of every operation of the contract: plain loops over plain slices, written to be obviously right.
//!
//! Matrices are row-major. Each gradient is proven by central finite differences of its forward function.
//! [`ReferenceBackend`] makes a backend of them, so that a whole model has an f64 version too.

mod attention;
mod backend;
mod exact;
mod head;
mod linear;
mod pointwise;
mod rounding;

#[cfg(test)]
mod finite_differences;

pub use attention::{AttentionGradients, attention, attention_backward};
pub use backend::{Cache, FrozenLinear, Matrix, Packing, ReferenceBackend, RotaryTable, Table};
pub use exact::{adamw, from_fixed, to_fixed};
pub use head::{cross_entropy, cross_entropy_gradient, log_probabilities, logits};
pub use linear::{LinearGradients, LinearShape, Lora, dropout_mask, linear, linear_backward};
pub use pointwise::{embedding, gated, gated_backward, gather_rows, rms_norm, rms_norm_backward, rotary, scatter_rows};
pub use rounding::Rounding;
