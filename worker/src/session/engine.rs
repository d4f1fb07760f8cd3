//! What the session drives: something that trains.

use crate::WorkerError;
use crate::collective::{DeviceCollective, NcclDevice, NcclPlace, RingPlace, Solo, TcpRing};
use crate::evaluate;
use crate::memory::MemoryEstimate;
use crate::trainer::{ExportedState, StepOutcome, Trainer};
use ballast_proto::CommunicatorSecret;
use ballast_proto::v1::{NumericsFingerprint, StepShard, next_task_response::Task, task_result};
use bytes::Bytes;
use std::net::TcpListener;
use std::sync::Arc;

/// A training state with a base model under it. Lives on the compute thread, where whatever takes time blocks; only one that has no
/// thread to itself has to wait for other ranks without blocking.
#[tonic::async_trait(?Send)]
pub trait Engine {
    /// All that may change a bit of the result.
    fn fingerprint(&self) -> &NumericsFingerprint;
    /// Steps applied to the state.
    fn applied_step(&self) -> u64;
    /// The state of step 0, from the run's seed.
    fn reset(&mut self) -> Result<(), WorkerError>;
    /// Replaces the state by one exported after `step`.
    fn import_state(&mut self, step: u64, files: &[(String, Bytes)]) -> Result<(), WorkerError>;
    /// SHA-256 of the state.
    fn state_sha256(&self) -> Result<[u8; 32], WorkerError>;
    /// A copy of the state, and how to make files of it.
    fn copy_state(&self) -> Result<Export, WorkerError>;
    /// A secret by which the ranks of one generation can meet over NCCL.
    fn communicator_id(&self) -> Result<CommunicatorSecret, WorkerError>;
    /// Meets the other ranks of a generation.
    async fn connect(&mut self, meeting: Meeting) -> Result<(), WorkerError>;
    /// Trains one step, with the ranks it has met.
    async fn step(&mut self, shard: &StepShard) -> Result<StepOutcome, WorkerError>;
    /// Parts from the other ranks.
    fn disconnect(&mut self);
    /// Runs one evaluation task.
    fn evaluate(&mut self, task: &Task) -> Result<task_result::Result, WorkerError>;
}

/// Makes files of a state that was copied. Takes its time, and needs no engine.
pub type Export = Box<dyn FnOnce() -> Result<ExportedState, WorkerError> + Send>;

/// How the ranks of a generation meet.
#[derive(Debug)]
pub enum Meeting {
    /// There is only one.
    Alone,
    /// In a ring, over TCP.
    Ring(RingPlace),
    /// Over NCCL.
    Nccl(NcclPlace),
}

/// The trainer on a backend.
pub(super) struct TrainerEngine<B: NcclDevice> {
    pub(super) trainer: Trainer<B>,
    pub(super) backend: Arc<B>,
    /// Where the neighbours in a ring find it.
    pub(super) listener: TcpListener,
    pub(super) fingerprint: NumericsFingerprint,
    /// What it takes of the device's memory.
    pub(super) planned: MemoryEstimate,
    /// The ranks of the current generation.
    pub(super) collective: Option<Box<dyn DeviceCollective<B>>>,
}

#[tonic::async_trait(?Send)]
impl<B: NcclDevice> Engine for TrainerEngine<B> {
    fn fingerprint(&self) -> &NumericsFingerprint {
        &self.fingerprint
    }

    fn applied_step(&self) -> u64 {
        self.trainer.applied_step()
    }

    fn reset(&mut self) -> Result<(), WorkerError> {
        if self.trainer.applied_step() == 0 { Ok(()) } else { self.trainer.reset() }
    }

    fn import_state(&mut self, step: u64, files: &[(String, Bytes)]) -> Result<(), WorkerError> {
        self.trainer.import_state(step, files)
    }

    fn state_sha256(&self) -> Result<[u8; 32], WorkerError> {
        self.trainer.state_sha256()
    }

    fn copy_state(&self) -> Result<Export, WorkerError> {
        let copy = self.trainer.copy_state()?;
        Ok(Box::new(move || copy.export()))
    }

    fn communicator_id(&self) -> Result<CommunicatorSecret, WorkerError> {
        B::communicator_id()
    }

    async fn connect(&mut self, meeting: Meeting) -> Result<(), WorkerError> {
        self.collective = Some(match meeting {
            Meeting::Alone => Box::new(Solo),
            Meeting::Ring(RingPlace { config, abort, progress }) => {
                Box::new(TcpRing::connect(&self.listener, config, &abort, progress)?)
            }
            Meeting::Nccl(place) => B::connect(&self.backend, place)?,
        });
        Ok(())
    }

    async fn step(&mut self, shard: &StepShard) -> Result<StepOutcome, WorkerError> {
        let Some(collective) = &mut self.collective else {
            return Err(WorkerError::Internal(format!("step {} before the ranks have met", shard.step)));
        };
        self.trainer.step(shard, &mut **collective).map_err(|error| self.planned.told(error))
    }

    fn disconnect(&mut self) {
        self.collective = None;
    }

    fn evaluate(&mut self, task: &Task) -> Result<task_result::Result, WorkerError> {
        evaluate::run(&mut self.trainer, task).map_err(|error| self.planned.told(error))
    }
}
