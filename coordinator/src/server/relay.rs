//! A training state on its way from the rank that hands it over to the ranks that start from it. It is held in memory until they
//! have begun.

use super::{control::View, link::ended};
use ballast_proto::{Failure, v1::Generation};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::watch;

/// The state that a generation starts from.
pub(super) struct HandedOver {
    pub(super) generation: Generation,
    pub(super) state_sha256: Bytes,
    /// Adapter and optimizer.
    pub(super) files: [Bytes; 2],
}

/// Where it waits for those who want it: one at a time, for there is one generation at a time.
#[derive(Clone)]
pub(super) struct Relay {
    slot: Arc<watch::Sender<Option<Arc<HandedOver>>>>,
}

impl Relay {
    pub(super) fn new() -> Self {
        Self { slot: Arc::new(watch::Sender::new(None)) }
    }

    /// Makes a state available until its generation has committed a step or is over.
    pub(super) fn offer(&self, state: HandedOver, start_step: u64, mut view: watch::Receiver<View>) {
        let (slot, generation) = (Arc::clone(&self.slot), state.generation);
        slot.send_replace(Some(Arc::new(state)));
        tokio::spawn(async move {
            // An error means that the run is over, and with it the generation.
            let _ = view.wait_for(|v| !v.alive(generation) || v.committed > start_step).await;
            slot.send_if_modified(|slot| {
                let same = slot.as_ref().is_some_and(|state| state.generation == generation);
                same && slot.take().is_some()
            });
        });
    }

    /// Waits for the state of a generation.
    ///
    /// # Errors
    /// `StaleGeneration` when the generation ends first.
    pub(super) async fn take(
        &self,
        generation: Generation,
        mut view: watch::Receiver<View>,
    ) -> Result<Arc<HandedOver>, Failure> {
        let mut offered = self.slot.subscribe();
        let of_it = |state: &Option<Arc<HandedOver>>| state.as_ref().is_some_and(|s| s.generation == generation);
        tokio::select! {
            biased;
            state = offered.wait_for(of_it) => {
                let state = state.ok().and_then(|state| state.clone());
                state.ok_or_else(|| ended(generation))
            }
            _ = view.wait_for(|v| !v.alive(generation)) => Err(ended(generation)),
        }
    }
}
