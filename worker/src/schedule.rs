//! Learning rates over the run, with the meaning that `transformers.get_scheduler` gives them under torch's
//! `LambdaLR`: the multiplier of step `s` (from 1) is that of `s - 1` completed steps, so a warm-up starts from 0.

use crate::WorkerError;
use ballast_proto::v1;
use ballast_proto::v1::schedule::Kind;
use std::f64::consts::PI;

/// A learning rate for every step of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    kind: Kind,
    base: f64,
    warmup_steps: u64,
    total_steps: u64,
}

impl Schedule {
    /// The schedule of a run with this base rate.
    ///
    /// # Errors
    /// [`WorkerError::RunSpec`] for a kind this worker does not know or a rate that is no number.
    pub fn new(schedule: &v1::Schedule, base: f64, total_steps: u64) -> Result<Self, WorkerError> {
        let kind = schedule.kind();
        if kind == Kind::Unspecified {
            return Err(WorkerError::RunSpec(format!("schedule.kind {} is unknown to this worker", schedule.kind)));
        }
        if !base.is_finite() || base < 0.0 {
            return Err(WorkerError::RunSpec(format!("optimizer.learning_rate {base} is not a rate")));
        }
        Ok(Self { kind, base, warmup_steps: schedule.warmup_steps, total_steps })
    }

    /// The learning rate of `step`, counted from 1.
    #[must_use]
    pub fn learning_rate(&self, step: u64) -> f64 {
        let completed = step.saturating_sub(1);
        if completed < self.warmup_steps {
            return self.base * (completed as f64 / self.warmup_steps as f64);
        }
        self.base
            * match self.kind {
                Kind::Linear => 1.0 - self.decayed(completed),
                Kind::Cosine => 0.5 * (1.0 + (PI * self.decayed(completed)).cos()),
                Kind::Constant | Kind::Unspecified => 1.0,
            }
    }

    /// Share of the decay that lies behind, in `[0, 1]`.
    fn decayed(&self, completed: u64) -> f64 {
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        ((completed - self.warmup_steps) as f64 / span as f64).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: Kind, warmup_steps: u64, total: u64) -> Vec<f64> {
        let schedule = v1::Schedule { kind: kind as i32, warmup_steps };
        let schedule = Schedule::new(&schedule, 1.0, total).unwrap();
        (1..=total + 1).map(|step| schedule.learning_rate(step)).collect()
    }

    #[test]
    fn constant_after_warm_up_from_zero() {
        assert_eq!(rates(Kind::Constant, 0, 3), [1.0; 4]);
        assert_eq!(rates(Kind::Constant, 4, 5), [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]);
    }

    /// `get_linear_schedule_with_warmup(optimizer, 2, 6)`.
    #[test]
    fn linear_reaches_zero_at_the_last_completed_step() {
        assert_eq!(rates(Kind::Linear, 2, 6), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(rates(Kind::Linear, 0, 2), [1.0, 0.5, 0.0]);
    }

    /// `get_cosine_schedule_with_warmup(optimizer, 1, 5)`.
    #[test]
    fn cosine_is_half_a_wave() {
        let root = std::f64::consts::FRAC_1_SQRT_2;
        let expected = [0.0, 1.0, 0.5 + 0.5 * root, 0.5, 0.5 - 0.5 * root, 0.0];
        for (rate, expected) in rates(Kind::Cosine, 1, 5).into_iter().zip(expected) {
            assert!((rate - expected).abs() < 1e-15, "{rate} {expected}");
        }
    }

    #[test]
    fn a_warm_up_longer_than_the_run_never_ends() {
        assert_eq!(rates(Kind::Linear, 10, 2), [0.0, 0.1, 0.2]);
    }

    #[test]
    fn unknown_kinds_and_rates_are_refused() {
        assert!(Schedule::new(&v1::Schedule::default(), 1.0, 1).is_err());
        let constant = v1::Schedule { kind: Kind::Constant as i32, warmup_steps: 0 };
        assert!(Schedule::new(&constant, f64::NAN, 1).is_err());
    }
}
