//! Ending a communicator from another thread.

use super::shared::Shared;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Ends the communicators that were made with it: a thread that waits in one returns at once, with
/// [`super::CommunicatorError::Aborted`]. Made before the communicator, so that its making can be aborted too. Clones
/// share one state.
#[derive(Clone, Default)]
pub struct CommunicatorAbort(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    reason: Option<String>,
    communicators: Vec<Weak<Shared>>,
}

impl CommunicatorAbort {
    /// A handle that was not used yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives up every communicator of this handle, those also that are yet to be made. Never waits: the communicators'
    /// own threads tear them down. The first reason stays.
    pub fn abort(&self, reason: &str) {
        let mut state = self.state();
        let reason = state.reason.get_or_insert_with(|| reason.to_owned()).clone();
        for communicator in state.communicators.drain(..).filter_map(|communicator| communicator.upgrade()) {
            communicator.abort(&reason);
        }
    }

    /// Puts a communicator in reach.
    pub(super) fn watch(&self, communicator: &Arc<Shared>) {
        let mut state = self.state();
        match &state.reason {
            Some(reason) => communicator.abort(reason),
            None => {
                state.communicators.retain(|communicator| communicator.strong_count() > 0);
                state.communicators.push(Arc::downgrade(communicator));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CommunicatorAbort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommunicatorAbort").field("reason", &self.state().reason).finish_non_exhaustive()
    }
}
