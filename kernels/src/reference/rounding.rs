//! What a value becomes when it is stored.

use half::bf16;

/// The precision in which activations and frozen weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// As they are.
    Exact,
    /// To the nearest bf16, ties to even.
    Bf16,
}

impl Rounding {
    /// The value as stored.
    #[must_use]
    pub fn round(self, value: f64) -> f64 {
        match self {
            Self::Exact => value,
            Self::Bf16 => bf16::from_f64(value).to_f64(),
        }
    }
}
