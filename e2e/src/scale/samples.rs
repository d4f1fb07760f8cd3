//! Many durations in few numbers.

use serde::Serialize;
use std::time::Duration;

/// Durations of one kind.
#[derive(Debug, Default)]
pub(super) struct Samples(Vec<Duration>);

/// Their quantiles in milliseconds; 0 where there are none.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Quantiles {
    /// How many there are.
    pub count: usize,
    /// The median.
    pub p50: f64,
    /// All but one in a hundred are at most this.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Samples {
    pub(super) fn push(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    pub(super) fn quantiles(mut self) -> Quantiles {
        self.0.sort_unstable();
        let at = |share: f64| {
            let index = (self.0.len() as f64 * share) as usize;
            self.0.get(index.min(self.0.len().saturating_sub(1))).map_or(0.0, |d| d.as_secs_f64() * 1e3)
        };
        Quantiles { count: self.0.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}
