//! What the session drives: something that trains.

use crate::WorkerError;
use crate::collective::Collective;
use crate::evaluate;
use crate::model::Decoder;
use crate::progress::Progress;
use crate::trainer::{ExportedState, StepOutcome, Trainer};
use ballast_basemodel::ModelSource;
use ballast_kernels::{Backend, cpu::CpuBackend};
use ballast_proto::v1::{NumericsFingerprint, RunSpec, StepShard, next_task_response::Task, task_result};
use ballast_proto::{ErrorCode, Failure};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::sync::Arc;

/// A training state with a base model under it. Lives on the compute thread.
pub(super) trait Engine {
    /// All that may change a bit of the result.
    fn fingerprint(&self) -> &NumericsFingerprint;
    /// Steps applied to the state.
    fn applied_step(&self) -> u64;
    /// The state of step 0, from the run's seed.
    fn reset(&mut self) -> Result<(), WorkerError>;
    /// Replaces the state by one exported after `step`.
    fn import_state(&mut self, step: u64, files: &[(String, Bytes)]) -> Result<(), WorkerError>;
    /// The state as files.
    fn export_state(&self) -> Result<ExportedState, WorkerError>;
    /// Trains one step.
    fn step(&mut self, shard: &StepShard, collective: &mut dyn Collective) -> Result<StepOutcome, WorkerError>;
    /// Runs one evaluation task.
    fn evaluate(&mut self, task: &Task) -> Result<task_result::Result, WorkerError>;
}

/// Makes the engine of a run, on the compute thread.
pub(super) type Loader = Box<dyn FnOnce(&RunSpec, &Progress) -> Result<Box<dyn Engine>, WorkerError> + Send>;

/// The trainer on a backend.
struct TrainerEngine<B: Backend> {
    trainer: Trainer<B>,
    decoder: Arc<Decoder<B>>,
    backend: Arc<B>,
    run: RunSpec,
    fingerprint: NumericsFingerprint,
}

/// Loads the run's base model (or `override_source`) onto the CPU, with so many threads (the run's number when `None`).
pub(super) fn load_on_cpu(
    run: &RunSpec,
    override_source: Option<&str>,
    threads: Option<usize>,
    progress: &Progress,
) -> Result<Box<dyn Engine>, WorkerError> {
    let expected = run.base_model.as_ref().ok_or_else(|| WorkerError::RunSpec("base_model is missing".into()))?;
    let revision = Some(expected.revision.as_str()).filter(|revision| !revision.is_empty());
    let source = match override_source {
        Some(source) => ModelSource::parse(source, None)?,
        None => ModelSource::parse(&expected.source, revision)?,
    };
    let model = source.fetch()?;
    let sha256 = model.sha256()?;
    if sha256 != expected.sha256 {
        return Err(Failure::new(
            ErrorCode::ModelMismatch,
            format!(
                "the base model at {} has sha256 {sha256}, the run's has {}: give this worker the same files (--model)",
                override_source.unwrap_or(&expected.source),
                expected.sha256
            ),
        )
        .into());
    }
    let backend = Arc::new(CpuBackend::new(threads.unwrap_or(run.threads as usize))?);
    let decoder = Arc::new(Decoder::load(&backend, &model)?);
    let fingerprint = NumericsFingerprint {
        binary_sha256: binary_sha256()?,
        backend: backend.name().into(),
        arithmetic: backend.arithmetic(),
        weights_sha256: sha256,
    };
    let trainer = Trainer::new(Arc::clone(&backend), Arc::clone(&decoder), run, progress.clone())?;
    Ok(Box::new(TrainerEngine { trainer, decoder, backend, run: run.clone(), fingerprint }))
}

impl<B: Backend> Engine for TrainerEngine<B> {
    fn fingerprint(&self) -> &NumericsFingerprint {
        &self.fingerprint
    }

    fn applied_step(&self) -> u64 {
        self.trainer.applied_step()
    }

    fn reset(&mut self) -> Result<(), WorkerError> {
        if self.trainer.applied_step() > 0 {
            let (backend, decoder) = (Arc::clone(&self.backend), Arc::clone(&self.decoder));
            self.trainer = Trainer::new(backend, decoder, &self.run, self.trainer.progress().clone())?;
        }
        Ok(())
    }

    fn import_state(&mut self, step: u64, files: &[(String, Bytes)]) -> Result<(), WorkerError> {
        self.trainer.import_state(step, files)
    }

    fn export_state(&self) -> Result<ExportedState, WorkerError> {
        self.trainer.export_state()
    }

    fn step(&mut self, shard: &StepShard, collective: &mut dyn Collective) -> Result<StepOutcome, WorkerError> {
        self.trainer.step(shard, collective)
    }

    fn evaluate(&mut self, task: &Task) -> Result<task_result::Result, WorkerError> {
        evaluate::run(&mut self.trainer, task)
    }
}

/// SHA-256 (hex) of the running binary.
fn binary_sha256() -> Result<String, WorkerError> {
    let hash = || {
        let mut hasher = Sha256::new();
        std::io::copy(&mut File::open(std::env::current_exe()?)?, &mut hasher)?;
        Ok::<_, std::io::Error>(hex::encode(hasher.finalize()))
    };
    hash().map_err(|e| WorkerError::Internal(format!("the binary cannot hash itself: {e}")))
}
