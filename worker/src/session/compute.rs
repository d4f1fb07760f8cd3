//! The compute thread: carries out one order after the other, away from the async runtime.

use super::conversation::Event;
use super::engine::{Engine, Export, Meeting};
use super::load::Loader;
use crate::WorkerError;
use crate::collective::{AbortHandle, CollectiveError, NcclPlace, Peer, RingConfig, Solo, TcpRing};
use crate::progress::Progress;
use crate::trainer::StepOutcome;
use ballast_proto::v1::{
    Generation, GenerationFormed, Phase, Ready, RunSpec, StateSource, StepReport, StepShard, Transport,
    next_task_response::Task, task_result,
};
use ballast_proto::{Coded, CommunicatorSecret, Failure};
use bytes::Bytes;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What the session wants computed.
pub(super) enum Order {
    /// Train a generation until its shards end.
    Train(Training),
    /// Run one evaluation task.
    Evaluate(Task, oneshot::Sender<task_result::Result>),
}

/// A generation, ready to begin.
pub(super) struct Training {
    pub(super) formed: GenerationFormed,
    pub(super) generation: Generation,
    /// State files, when the generation starts from a checkpoint.
    pub(super) checkpoint: Vec<(String, Bytes)>,
    /// This rank's shards, in step order.
    pub(super) shards: mpsc::Receiver<StepShard>,
    /// Brings the secret by which the ranks meet, from rank 0; ends with the generation.
    pub(super) communicator: Receiver<CommunicatorSecret>,
    pub(super) control: Control,
}

/// What reaches into a running generation from outside.
#[derive(Clone, Debug)]
pub(super) struct Control {
    /// Ends it at once.
    pub(super) abort: AbortHandle,
    /// Its last step.
    last_step: Arc<AtomicU64>,
}

impl Control {
    pub(super) fn new() -> Self {
        Self { abort: AbortHandle::new(), last_step: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// Lets `step` be the last one.
    pub(super) fn stop_after(&self, step: u64) {
        self.last_step.fetch_min(step, Ordering::Relaxed);
    }
}

/// A state on its way to the coordinator.
pub(super) struct Snapshot {
    pub(super) generation: Generation,
    pub(super) step: u64,
    pub(super) export: Export,
}

/// What the compute thread is given once.
pub(super) struct Computer {
    pub(super) run: RunSpec,
    pub(super) listener: TcpListener,
    pub(super) progress: Progress,
    pub(super) events: mpsc::UnboundedSender<Event>,
    /// Bounded: a second snapshot waits until the first has left, so that memory does.
    pub(super) snapshots: mpsc::Sender<Snapshot>,
}

/// How a generation's training came to its end.
enum Trained {
    /// All its shards are done, or it was told to stop or aborted.
    Over,
    /// The session is gone.
    Unheard,
}

impl Computer {
    /// Body of the thread: loads the base model, then follows orders until the session is gone.
    pub(super) fn work(self, load: Loader, orders: &Receiver<Order>) {
        self.progress.set_phase(Phase::Loading);
        let outcome = load(&self.run, &self.progress).and_then(|mut engine| {
            let ready = Ready { fingerprint: Some(engine.fingerprint().clone()), applied_step: 0, has_state: false };
            self.progress.set_phase(Phase::Waiting);
            self.tell(Event::Loaded(ready));
            self.follow(&mut *engine, orders)
        });
        if let Err(error) = outcome {
            self.tell(Event::Failed(Failure::new(error.code(), error.to_string())));
        }
    }

    fn follow(&self, engine: &mut dyn Engine, orders: &Receiver<Order>) -> Result<(), WorkerError> {
        while let Ok(order) = orders.recv() {
            match order {
                Order::Train(training) => {
                    if let Trained::Unheard = self.train(engine, training)? {
                        return Ok(());
                    }
                }
                Order::Evaluate(task, reply) => {
                    self.progress.set_phase(Phase::Evaluate);
                    let result = engine.evaluate(&task)?;
                    // Without a listener the session is gone, which the next `recv` says too.
                    let _ = reply.send(result);
                }
            }
            self.progress.set_phase(Phase::Waiting);
        }
        Ok(())
    }

    fn train(&self, engine: &mut dyn Engine, mut training: Training) -> Result<Trained, WorkerError> {
        prepare(engine, &training)?;
        let generation = training.generation;
        let trained = self.connect(engine, &mut training).and_then(|()| self.train_steps(engine, &mut training));
        // Parting from the other ranks is short, and worth waiting for when the session ends.
        self.progress.set_phase(Phase::Waiting);
        engine.disconnect();
        match trained {
            Err(WorkerError::Collective(CollectiveError::Aborted(reason))) => {
                tracing::info!(%generation, reason, "generation aborted");
                Ok(Trained::Over)
            }
            Err(WorkerError::Collective(error)) => {
                self.tell(Event::GenerationBroken { generation, reason: error.to_string() });
                Ok(Trained::Over)
            }
            other => other,
        }
    }

    fn train_steps(&self, engine: &mut dyn Engine, training: &mut Training) -> Result<Trained, WorkerError> {
        loop {
            if engine.applied_step() >= training.control.last_step.load(Ordering::Relaxed) {
                return Ok(Trained::Over);
            }
            self.progress.set_phase(Phase::Waiting);
            // The stream ends with the generation, be it done or aborted.
            let Some(shard) = training.shards.blocking_recv() else { return Ok(Trained::Over) };
            // Nobody wants the shards that came before an abort.
            if let Some(aborted) = training.control.abort.reason() {
                return Err(aborted.into());
            }
            let outcome = engine.step(&shard)?;
            self.tell(Event::Stepped(report(training.generation, shard.step, &outcome)));
            if shard.checkpoint_after && training.formed.rank == 0 {
                let (generation, step) = (training.generation, shard.step);
                let snapshot = Snapshot { generation, step, export: engine.copy_state()? };
                // The one before it may still be on its way, and then this waits for others.
                self.progress.set_phase(Phase::Waiting);
                if self.snapshots.blocking_send(snapshot).is_err() {
                    return Ok(Trained::Unheard);
                }
            }
            if shard.last {
                return Ok(Trained::Over);
            }
        }
    }

    /// Meets the other ranks.
    fn connect(&self, engine: &mut dyn Engine, training: &mut Training) -> Result<(), WorkerError> {
        let (rank, addresses) = (training.formed.rank as usize, training.formed.ring_addresses.clone());
        if addresses.len() == 1 {
            return engine.connect(Meeting::Host(Box::new(Solo)));
        }
        let timeouts = self.run.timeouts.as_ref().ok_or_else(|| WorkerError::RunSpec("timeouts are missing".into()))?;
        let timeout = Duration::from_millis(timeouts.collective_ms);
        let abort = training.control.abort.clone();
        let meeting = match training.formed.transport() {
            Transport::Tcp => {
                let (run_id, generation) = (self.run.run_id.clone(), training.generation);
                let config = RingConfig { run_id, generation, rank, addresses, timeout };
                self.progress.set_phase(Phase::Reduce);
                Meeting::Host(Box::new(TcpRing::connect(&self.listener, config, &abort, self.progress.clone())?))
            }
            Transport::Nccl => {
                let id = self.communicator_id(engine, training, timeout)?;
                let (world_size, progress) = (addresses.len(), self.progress.clone());
                self.progress.set_phase(Phase::Reduce);
                Meeting::Nccl(NcclPlace { id, rank, world_size, timeout, abort, progress })
            }
            Transport::Unspecified => {
                let generation = training.generation;
                return Err(WorkerError::RunSpec(format!("generation {generation} meets in a way that is not known")));
            }
        };
        engine.connect(meeting)
    }

    /// Rank 0 makes the secret and lets the coordinator pass it on; the others wait for it, as long as a collective may
    /// take.
    fn communicator_id(
        &self,
        engine: &dyn Engine,
        training: &Training,
        timeout: Duration,
    ) -> Result<CommunicatorSecret, WorkerError> {
        if training.formed.rank == 0 {
            // Not a phase of waiting: the coordinator is to notice when this stands still.
            self.progress.set_phase(Phase::Reduce);
            // This is a failure of this worker alone. It leaves, so that another becomes rank 0: a new generation would
            // have the same one fail again.
            let id = engine.communicator_id().map_err(|error| Failure::new(error.code(), error.to_string()))?;
            self.tell(Event::CommunicatorMade(id.clone().of(training.generation)));
            return Ok(id);
        }
        self.progress.set_phase(Phase::Waiting);
        training.communicator.recv_timeout(timeout).map_err(|error| {
            let failed = match error {
                RecvTimeoutError::Timeout => {
                    let peer = Peer { rank: 0, address: training.formed.ring_addresses[0].clone() };
                    CollectiveError::NoCommunicatorId { peer, waited: timeout }
                }
                // The sender goes with the generation.
                RecvTimeoutError::Disconnected => training.control.abort.reason().unwrap_or(CollectiveError::Broken),
            };
            failed.into()
        })
    }

    /// When the session is gone there is nobody to tell, and the thread ends with its next order.
    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

/// Brings the engine to the state that the generation starts from.
fn prepare(engine: &mut dyn Engine, training: &Training) -> Result<(), WorkerError> {
    let start = training.formed.start_step;
    match training.formed.state_source() {
        StateSource::Seed => engine.reset()?,
        StateSource::Checkpoint => engine.import_state(start, &training.checkpoint)?,
        StateSource::Memory => {}
        StateSource::Unspecified => {
            return Err(WorkerError::RunSpec(format!("generation {}: no state to start from", training.generation)));
        }
    }
    if engine.applied_step() != start {
        return Err(WorkerError::RunSpec(format!(
            "generation {} starts from step {start}, but this worker's state is of step {}",
            training.generation,
            engine.applied_step()
        )));
    }
    Ok(())
}

fn report(generation: Generation, step: u64, outcome: &StepOutcome) -> StepReport {
    StepReport {
        generation: Some(generation),
        step,
        state_sha256: Bytes::copy_from_slice(&outcome.state_sha256),
        loss: outcome.loss,
        loss_tokens: outcome.loss_tokens,
        tokens: outcome.tokens,
        rank_tokens: outcome.rank_tokens,
        grad_norm: outcome.grad_norm,
        learning_rate: outcome.learning_rate,
        compute_seconds: outcome.compute_seconds,
        reduce_seconds: outcome.reduce_seconds,
        recomputed: outcome.recomputed,
    }
}
