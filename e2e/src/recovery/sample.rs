//! Durations of one kind, summed up in a line.

use serde_json::{Value, json};
use std::time::Duration;

/// Durations of one kind, in seconds.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Takes note of one.
    pub fn take(&mut self, duration: Duration) {
        self.0.push(duration.as_secs_f64());
    }

    /// Each of them shorter by so many seconds; below 0 where it was shorter than that.
    #[must_use]
    pub fn less(&self, seconds: f64) -> Self {
        Self(self.0.iter().map(|one| one - seconds).collect())
    }

    /// The one that such a share of them does not reach, from 0 to 1; `None` when there are none.
    #[must_use]
    pub fn at(&self, share: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let place = (sorted.len() as f64 * share) as usize;
        sorted.get(place).or(sorted.last()).copied()
    }

    /// The line of a measure.
    #[must_use]
    pub fn line(&self, model: &str, measure: &str) -> Value {
        json!({
            "measure": measure,
            "model": model,
            "count": self.0.len(),
            "p50": self.at(0.5),
            "p90": self.at(0.9),
            "p99": self.at(0.99),
            "max": self.at(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_durations_that_were_taken() {
        let mut sample = Sample::default();
        assert_eq!(sample.at(0.5), None);
        for seconds in [5, 3, 1, 2, 4] {
            sample.take(Duration::from_secs(seconds));
        }
        let four = [0.0, 0.5, 0.99, 1.0].map(|share| sample.at(share));
        assert_eq!(four, [Some(1.0), Some(3.0), Some(5.0), Some(5.0)]);
        assert_eq!(sample.less(2.0).at(0.0), Some(-1.0));
    }
}
