//! Why a step was skipped.

use super::SampleSet;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The samples of the micro-batches that were not finite in a step whose update was not applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Of those whose loss was not.
    pub loss: SampleSet,
    /// Of those whose gradient was not.
    pub gradient: SampleSet,
}

impl fmt::Display for Skipped {
    /// As in `gradient not finite in the micro-batches of samples 3 17-19`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { loss, gradient } = self;
        let of = "not finite in the micro-batches of samples";
        match (loss.is_empty(), gradient.is_empty()) {
            (false, false) if loss == gradient => write!(f, "loss and gradient {of} {loss}"),
            (false, false) => write!(f, "loss {of} {loss}, gradient in those of {gradient}"),
            (false, true) => write!(f, "loss {of} {loss}"),
            (true, _) => write!(f, "gradient {of} {gradient}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_finite_is_said_once() {
        let told = |loss: &[u32], gradient: &[u32]| {
            let set = |samples: &[u32]| SampleSet::new(samples.iter().copied()).unwrap();
            Skipped { loss: set(loss), gradient: set(gradient) }.to_string()
        };
        assert_eq!(told(&[3, 4], &[3, 4]), "loss and gradient not finite in the micro-batches of samples 3-4");
        assert_eq!(told(&[], &[3, 17, 18]), "gradient not finite in the micro-batches of samples 3 17-18");
        assert_eq!(told(&[3], &[]), "loss not finite in the micro-batches of samples 3");
        assert_eq!(told(&[3], &[3, 9]), "loss not finite in the micro-batches of samples 3, gradient in those of 3 9");
    }
}
