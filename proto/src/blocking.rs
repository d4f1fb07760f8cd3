//! Where work that blocks is done.

use crate::{ErrorCode, Failure};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Keeps what blocks away from the tasks of an async runtime.
#[derive(Clone, Default)]
pub enum Blocking {
    /// On threads of the runtime's.
    #[default]
    Threads,
    /// In a simulation, which has neither threads nor a clock of its own: at once, when as much of the simulated time has passed as
    /// this says.
    Simulated(Arc<dyn Fn() -> Duration + Send + Sync>),
}

impl Blocking {
    /// Does `work` and gives what it gave.
    ///
    /// # Errors
    /// `Internal` when it panics, or the runtime ends before.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        match self {
            Self::Threads => {
                let done = tokio::task::spawn_blocking(work).await;
                done.map_err(|e| Failure::new(ErrorCode::Internal, e.to_string()))
            }
            Self::Simulated(duration) => {
                tokio::time::sleep(duration()).await;
                Ok(work())
            }
        }
    }
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Threads => "Threads",
            Self::Simulated(_) => "Simulated",
        })
    }
}
