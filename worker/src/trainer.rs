//! The step loop.

use crate::WorkerError;
use crate::collective::Collective;
use crate::model::Decoder;
use crate::progress::Progress;
use ballast_kernels::Backend;
use ballast_proto::v1::{RunSpec, StepShard};
use bytes::Bytes;
use std::sync::Arc;

pub use crate::state::ExportedState;

/// What one step did; equal on all ranks but for the seconds and `rank_tokens`.
#[derive(Clone, Debug)]
pub struct StepOutcome {
    /// Mean loss over the global batch, in nats a token.
    pub loss: f64,
    /// Tokens the loss was taken over.
    pub loss_tokens: u64,
    /// Tokens of the whole step.
    pub tokens: u64,
    /// Tokens of this rank.
    pub rank_tokens: u64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// SHA-256 of the state after the step.
    pub state_sha256: [u8; 32],
    /// Seconds spent computing.
    pub compute_seconds: f64,
    /// Seconds spent in collectives.
    pub reduce_seconds: f64,
    /// How often the step was recomputed because a gradient overflowed its fixed-point exponent.
    pub recomputed: u32,
}

/// One rank's trainer.
pub struct Trainer<B: Backend> {
    backend: Arc<B>,
    decoder: Arc<Decoder<B>>,
    progress: Progress,
}

impl<B: Backend> Trainer<B> {
    /// A trainer with a fresh adapter from the run's seed, at step 0.
    ///
    /// # Errors
    /// When the run cannot be trained on this model, or the device is out of memory.
    pub fn new(
        backend: Arc<B>,
        decoder: Arc<Decoder<B>>,
        run: &RunSpec,
        progress: Progress,
    ) -> Result<Self, WorkerError> {
        let _ = run;
        Ok(Self { backend, decoder, progress })
    }

    /// Steps applied to the state.
    pub fn applied_step(&self) -> u64 {
        0
    }

    /// Trains one step: the shard's micro-batches here, the others on their ranks. Nothing is applied unless all
    /// reductions succeeded.
    ///
    /// # Errors
    /// See [`WorkerError`]; the state is as it was before.
    pub fn step(&mut self, shard: &StepShard, collective: &mut dyn Collective) -> Result<StepOutcome, WorkerError> {
        let _ = (shard, collective, &self.backend, &self.decoder, &self.progress);
        Err(WorkerError::Internal("being written".into()))
    }

    /// The state as files.
    ///
    /// # Errors
    /// When the device fails.
    pub fn export_state(&self) -> Result<ExportedState, WorkerError> {
        Err(WorkerError::Internal("being written".into()))
    }

    /// Replaces the state by one exported after `step`.
    ///
    /// # Errors
    /// [`WorkerError::State`] when anything about the files is wrong; the state is as it was before.
    pub fn import_state(&mut self, step: u64, files: &[(String, Bytes)]) -> Result<(), WorkerError> {
        let _ = (step, files);
        Err(WorkerError::Internal("being written".into()))
    }
}
