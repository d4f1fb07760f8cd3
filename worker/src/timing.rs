//! What a step's time was spent on.

use std::time::{Duration, Instant};

/// Seconds by what they were spent on.
#[derive(Default)]
pub(crate) struct Clock {
    pub(crate) computing: Duration,
    /// Of that, on this rank's own micro-batches.
    pub(crate) own: Duration,
    pub(crate) reducing: Duration,
}

impl Clock {
    pub(crate) fn compute<T>(&mut self, work: impl FnOnce() -> T) -> T {
        timed(&mut self.computing, work)
    }

    pub(crate) fn reduce<T>(&mut self, work: impl FnOnce() -> T) -> T {
        timed(&mut self.reducing, work)
    }
}

fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *total += start.elapsed();
    result
}
