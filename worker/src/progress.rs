//! What the heartbeat thread sees of the compute thread.

use ballast_proto::v1::{Heartbeat, Phase};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// A counter and a phase, written by the compute thread and read by the heartbeat.
///
/// The counter rises with every layer computed and every frame reduced; while it stands still, nothing moves, and the
/// coordinator takes the worker for hung. Clones share one counter.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    count: AtomicU64,
    phase: AtomicI32,
}

impl Progress {
    /// A counter at 0, in no phase.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Something moved.
    pub fn tick(&self) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The compute thread begins another kind of work, which is itself a movement.
    pub fn set_phase(&self, phase: Phase) {
        self.0.phase.store(phase as i32, Ordering::Relaxed);
        self.tick();
    }

    /// Counter and phase as the coordinator is told them.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat { progress: self.0.count.load(Ordering::Relaxed), phase: self.0.phase.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_one_counter() {
        let progress = Progress::new();
        let other = progress.clone();
        std::thread::spawn(move || {
            other.set_phase(Phase::Compute);
            other.tick();
        })
        .join()
        .unwrap();
        let heartbeat = progress.heartbeat();
        assert_eq!((heartbeat.progress, heartbeat.phase()), (2, Phase::Compute));
    }
}
