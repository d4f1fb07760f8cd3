//! Objectives: a loss of the hidden states at scored rows, and its gradient.

pub(crate) mod sft;
