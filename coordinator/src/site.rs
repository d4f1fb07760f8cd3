//! The machine that a coordinator is on.

use crate::disk::{Disk, RealDisk};
use ballast_proto::Blocking;
use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// What of its machine a coordinator touches, beside the network.
#[derive(Clone)]
pub struct Site {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) blocking: Blocking,
    calendar: Calendar,
}

/// Milliseconds since 1970.
type Calendar = Arc<dyn Fn() -> u64 + Send + Sync>;

impl Default for Site {
    /// This machine.
    fn default() -> Self {
        let calendar = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        };
        Self { disk: Arc::new(RealDisk), blocking: Blocking::Threads, calendar: Arc::new(calendar) }
    }
}

impl Site {
    /// A machine that is simulated: its disk, what its time is spent on, and its calendar in milliseconds since 1970.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn simulated(
        disk: crate::disk::simulated::SimulatedDisk,
        blocking: Blocking,
        calendar: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self { disk: Arc::new(disk), blocking, calendar: Arc::new(calendar) }
    }

    /// Milliseconds since 1970, for the record: nothing is decided by it.
    pub(crate) fn now_ms(&self) -> u64 {
        (self.calendar)()
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").field("disk", &self.disk).field("blocking", &self.blocking).finish_non_exhaustive()
    }
}
