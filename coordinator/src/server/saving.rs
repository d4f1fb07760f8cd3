//! From a received state to a checkpoint, and what it means when none comes of it.

use super::{blueprint::Blueprint, control::Command, link::Link};
use crate::{
    checkpoint::{self, ADAPTER_MODEL, OPTIMIZER, SaveRequest, Store, validate_adapter, validate_optimizer},
    config::OnFailure,
    membership::Event,
};
use ballast_proto::{Blocking, ErrorCode, Failure, v1::Generation};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Makes states durable, one at a time.
pub(super) struct Saver {
    link: Link,
    blueprint: Arc<Blueprint>,
    store: Arc<dyn Store>,
    blocking: Blocking,
    /// Step of the newest checkpoint.
    newest: Mutex<Option<u64>>,
}

/// Why there is no checkpoint.
enum Unsaved {
    /// The state is not what it should be.
    Refused(Failure),
    /// The store failed, or belongs to another coordinator now.
    Failed(Failure),
}

impl Saver {
    /// `newest` is the step of the newest checkpoint that is there.
    pub(super) fn new(
        link: Link,
        blueprint: Arc<Blueprint>,
        store: Arc<dyn Store>,
        blocking: Blocking,
        newest: Option<u64>,
    ) -> Self {
        Self { link, blueprint, store, blocking, newest: Mutex::new(newest) }
    }

    /// Makes the state of a committed step a checkpoint. One that comes late, when a newer one is kept already, is let go: keeping
    /// it would cost the newer one its place.
    ///
    /// # Errors
    /// When the state is malformed, which is its sender's fault. When the store fails, the run's policy decides: an error
    /// here means that the run has been told to end.
    pub(super) async fn save(
        self: &Arc<Self>,
        step: u64,
        generation: Generation,
        state_sha256: Bytes,
        files: [Bytes; 2],
    ) -> Result<(), Failure> {
        let saver = Arc::clone(self);
        // A worker that goes away in the midst of it does not cancel it.
        let saving = tokio::spawn(async move { saver.save_in_turn(step, generation, state_sha256, files).await });
        saving.await.unwrap_or_else(|e| Err(Failure::new(ErrorCode::Internal, e.to_string())))
    }

    async fn save_in_turn(
        &self,
        step: u64,
        generation: Generation,
        state_sha256: Bytes,
        files: [Bytes; 2],
    ) -> Result<(), Failure> {
        let mut newest = self.newest.lock().await;
        if newest.is_some_and(|newest| newest >= step) {
            return Ok(());
        }
        self.link.tell(Command::Event(Event::CheckpointBegun { step })).await?;
        // It may have become void while it waited for its turn; from here on the membership waits for it.
        let recorded = self.link.ask(|reply| Command::StateOf(step, reply)).await?;
        let (blueprint, store) = (Arc::clone(&self.blueprint), Arc::clone(&self.store));
        let saving = self.blocking.run(move || {
            if recorded.as_deref() != Some(&*state_sha256) {
                let message = format!("the state of step {step} is not the one that was committed");
                return Err(Unsaved::Refused(Failure::new(ErrorCode::StateDiverged, message)));
            }
            write(&blueprint, &*store, step, generation, &state_sha256, &files)
        });
        let saved = saving.await.unwrap_or_else(|failure| Err(Unsaved::Failed(failure)));
        match saved {
            Ok(directory) => {
                *newest = Some(step);
                let path = checkpoint::locate(&*self.store, &directory);
                self.link.tell(Command::Saved { step, directory, path }).await
            }
            Err(Unsaved::Refused(failure)) => {
                self.link.tell(Command::Event(Event::CheckpointFailed { step })).await?;
                Err(failure)
            }
            Err(Unsaved::Failed(failure)) => self.failed(step, failure).await,
        }
    }

    /// A disk that is full now may have room later; a store that was taken over stays so.
    async fn failed(&self, step: u64, failure: Failure) -> Result<(), Failure> {
        let last = step >= self.link.view.borrow().end_step;
        let policy = self.blueprint.run.checkpoint.on_failure;
        if failure.code == ErrorCode::StorageFailed && policy == OnFailure::Continue && !last {
            return self.link.tell(Command::NotSaved { step, reason: failure.message }).await;
        }
        let which = if last { format!("the last step, {step},") } else { format!("step {step}") };
        let message = format!("the checkpoint of {which} cannot be saved: {}", failure.message);
        let failure = Failure::new(failure.code, message);
        self.link.tell(Command::Event(Event::Failed(failure.clone()))).await?;
        Err(failure)
    }
}

/// Validates and saves a state, then lets old checkpoints go. Blocks.
fn write(
    blueprint: &Blueprint,
    store: &dyn Store,
    step: u64,
    generation: Generation,
    state_sha256: &[u8],
    [adapter, optimizer]: &[Bytes; 2],
) -> Result<String, Unsaved> {
    validate_adapter(ADAPTER_MODEL, adapter, &blueprint.shapes).map_err(Unsaved::Refused)?;
    validate_optimizer(OPTIMIZER, optimizer, &blueprint.shapes, step).map_err(Unsaved::Refused)?;
    let config = &blueprint.adapter_config;
    let request = SaveRequest { step, generation, state_sha256, adapter, optimizer, config };
    let directory = checkpoint::save(store, &request).map_err(Unsaved::Failed)?;
    let policy = &blueprint.run.checkpoint;
    match checkpoint::retain(store, generation.epoch, policy.keep, &directory) {
        // There is one checkpoint too many, not too few; the next retention tries again.
        Err(failure) if failure.code == ErrorCode::StorageFailed && policy.on_failure == OnFailure::Continue => {
            tracing::warn!("old checkpoints could not be removed: {failure}");
        }
        retained => retained.map_err(Unsaved::Failed)?,
    }
    Ok(directory)
}
