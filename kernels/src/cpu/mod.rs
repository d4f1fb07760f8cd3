//! The CPU backend: f32 in memory and arithmetic.
