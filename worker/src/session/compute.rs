//! The compute thread: carries out one order after the other, away from the async runtime. What it waits for, it waits for without
//! blocking, so that a simulation can have it on the only thread that there is.

use super::conversation::Event;
use super::engine::{Engine, Export, Meeting};
use super::load::Loader;
use crate::WorkerError;
use crate::collective::{AbortHandle, CollectiveError, NcclPlace, Peer, RingConfig, RingPlace};
use crate::progress::Progress;
use crate::trainer::StepOutcome;
use ballast_proto::v1::{
    Generation, GenerationFormed, HeldState, Phase, Ready, RunSpec, StateSource, StepReport, StepShard, Transport,
    next_task_response::Task, task_result,
};
use ballast_proto::{Coded, CommunicatorSecret, Failure, fault};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// What the session wants computed.
pub(super) enum Order {
    /// Train a generation until its shards end.
    Train(Training),
    /// Run one evaluation task.
    Evaluate(Task, oneshot::Sender<task_result::Result>),
    /// Say what another session can begin with.
    Introduce(oneshot::Sender<Ready>),
}

/// A generation, ready to begin.
pub(super) struct Training {
    pub(super) formed: GenerationFormed,
    pub(super) generation: Generation,
    /// Of which start of the run it is.
    pub(super) run_id: String,
    /// Brings the state that the generation starts from, where this worker does not have it; ends with the generation.
    pub(super) state: oneshot::Receiver<Result<Downloaded, Failure>>,
    /// Takes the states that are to be uploaded. Bounded: a second one waits until the first has left, so that memory does.
    pub(super) snapshots: mpsc::Sender<Snapshot>,
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
    /// For who waits for that.
    aborted: CancellationToken,
    /// Its last step.
    last_step: Arc<AtomicU64>,
}

impl Control {
    pub(super) fn new() -> Self {
        let (abort, aborted) = (AbortHandle::new(), CancellationToken::new());
        let told = aborted.clone();
        abort.on_abort(move |_| told.cancel());
        Self { abort, aborted, last_step: Arc::new(AtomicU64::new(u64::MAX)) }
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

/// A state from the coordinator.
pub(super) struct Downloaded {
    /// SHA-256 that the state has once its files are read.
    pub(super) state_sha256: Bytes,
    pub(super) files: Vec<(String, Bytes)>,
}

/// What the compute thread is given once.
pub(super) struct Computer {
    pub(super) run: RunSpec,
    pub(super) progress: Progress,
    pub(super) events: mpsc::UnboundedSender<Event>,
}

/// What the thread keeps from one generation to the next.
struct Kept {
    engine: Box<dyn Engine>,
    /// The engine's state as a coordinator is told of it; `None` while it is the seed's.
    held: Option<HeldState>,
}

/// Reports that are kept of the newest steps: more than a coordinator has streamed ahead of what it has recorded.
const REPORTS: usize = 64;

impl Kept {
    /// Takes note of a step that was applied.
    fn hold(&mut self, step: u64, state_sha256: Bytes, report: StepReport) {
        let mut reports = self.held.take().map(|held| held.reports).unwrap_or_default();
        if reports.len() >= REPORTS {
            reports.remove(0);
        }
        reports.push(report);
        self.held = Some(HeldState { step, state_sha256, reports });
    }

    fn ready(&self, left: Option<Generation>) -> Ready {
        Ready { fingerprint: Some(self.engine.fingerprint().clone()), held: self.held.clone(), left }
    }
}

impl Computer {
    /// Body of the thread: loads the base model, then follows orders until nobody gives any more.
    pub(super) async fn work(self, load: Loader, mut orders: UnboundedReceiver<Order>) {
        self.progress.set_phase(Phase::Loading);
        let outcome = match load(&self.run, &self.progress) {
            Ok(engine) => {
                let mut kept = Kept { engine, held: None };
                self.progress.set_phase(Phase::Waiting);
                self.tell(Event::Idle(kept.ready(None)));
                self.follow(&mut kept, &mut orders).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            self.tell(Event::Failed(Failure::new(error.code(), error.to_string())));
        }
    }

    async fn follow(&self, kept: &mut Kept, orders: &mut UnboundedReceiver<Order>) -> Result<(), WorkerError> {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Train(training) => {
                    let generation = training.generation;
                    self.train(kept, training).await?;
                    self.progress.set_phase(Phase::Waiting);
                    self.tell(Event::Idle(kept.ready(Some(generation))));
                }
                Order::Evaluate(task, reply) => {
                    self.progress.set_phase(Phase::Evaluate);
                    let result = kept.engine.evaluate(&task)?;
                    // Without a listener the session is gone.
                    let _ = reply.send(result);
                }
                Order::Introduce(reply) => {
                    let _ = reply.send(kept.ready(None));
                }
            }
            self.progress.set_phase(Phase::Waiting);
        }
        Ok(())
    }

    /// Trains a generation until its shards end, or it is aborted or breaks.
    async fn train(&self, kept: &mut Kept, mut training: Training) -> Result<(), WorkerError> {
        let generation = training.generation;
        let trained = self.train_from_its_state(kept, &mut training).await;
        // Parting from the other ranks is short, and worth waiting for when the session ends.
        self.progress.set_phase(Phase::Waiting);
        kept.engine.disconnect();
        match trained {
            Err(WorkerError::Collective(CollectiveError::Aborted(reason))) => {
                tracing::info!(%generation, reason, "generation aborted");
                Ok(())
            }
            Err(WorkerError::Collective(error)) => {
                self.tell(Event::GenerationBroken { generation, reason: error.to_string() });
                Ok(())
            }
            other => other,
        }
    }

    async fn train_from_its_state(&self, kept: &mut Kept, training: &mut Training) -> Result<(), WorkerError> {
        self.prepare(kept, training).await?;
        self.connect(&mut *kept.engine, training).await?;
        self.train_steps(kept, training).await
    }

    async fn train_steps(&self, kept: &mut Kept, training: &mut Training) -> Result<(), WorkerError> {
        loop {
            if kept.engine.applied_step() >= training.control.last_step.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.progress.set_phase(Phase::Waiting);
            // The stream ends with the generation, be it done or aborted.
            let Some(shard) = training.shards.recv().await else { return Ok(()) };
            // Nobody wants the shards that came before an abort.
            if let Some(aborted) = training.control.abort.reason() {
                return Err(aborted.into());
            }
            let outcome = kept.engine.step(&shard).await?;
            fault::point("report", shard.step);
            let report = report(training.generation, shard.step, &outcome);
            let state_sha256 = report.state_sha256.clone();
            kept.hold(shard.step, state_sha256, report.clone());
            self.tell(Event::Stepped(report));
            if shard.checkpoint_after && training.formed.rank == 0 {
                self.upload(&*kept.engine, training).await?;
            }
            if shard.last {
                return Ok(());
            }
        }
    }

    /// Brings the engine to the state that the generation starts from, and hands it over where others start from it.
    async fn prepare(&self, kept: &mut Kept, training: &mut Training) -> Result<(), WorkerError> {
        let (start, generation) = (training.formed.start_step, training.generation);
        match training.formed.state_source() {
            StateSource::Seed => {
                kept.engine.reset()?;
                kept.held = None;
            }
            StateSource::Checkpoint | StateSource::Peer => {
                let over = || CollectiveError::Aborted("the way to its state is lost".into());
                let ended = |_| training.control.abort.reason().unwrap_or_else(over);
                let Downloaded { state_sha256, files } = (&mut training.state).await.map_err(ended)??;
                // What is held is lost as soon as anything is written over it.
                kept.held = None;
                kept.engine.import_state(start, &files)?;
                if *state_sha256 != kept.engine.state_sha256()? {
                    let detail = format!("its files are whole, but the state after step {start} has another sha256");
                    return Err(WorkerError::State { file: "state from the coordinator".into(), detail });
                }
                kept.held = Some(HeldState { step: start, state_sha256, reports: Vec::new() });
            }
            StateSource::Memory => {}
            StateSource::Unspecified => {
                return Err(WorkerError::RunSpec(format!("generation {generation}: no state to start from")));
            }
        }
        let applied = kept.engine.applied_step();
        if applied != start {
            return Err(WorkerError::RunSpec(format!(
                "generation {generation} starts from step {start}, but this worker's state is of step {applied}"
            )));
        }
        if training.formed.hand_over { self.upload(&*kept.engine, training).await } else { Ok(()) }
    }

    /// Sends the state on its way to the coordinator. When the session is gone, nobody takes it.
    async fn upload(&self, engine: &dyn Engine, training: &Training) -> Result<(), WorkerError> {
        let (generation, step) = (training.generation, engine.applied_step());
        let snapshot = Snapshot { generation, step, export: engine.copy_state()? };
        // The one before it may still be on its way, and then this waits for others.
        self.progress.set_phase(Phase::Waiting);
        tokio::select! {
            biased;
            place = training.snapshots.reserve() => {
                if let Ok(place) = place {
                    place.send(snapshot);
                }
                Ok(())
            }
            // The one before it may wait for this very generation to be given up.
            () = training.control.aborted.cancelled() => {
                Err(training.control.abort.reason().unwrap_or(CollectiveError::Broken).into())
            }
        }
    }

    /// Meets the other ranks.
    async fn connect(&self, engine: &mut dyn Engine, training: &mut Training) -> Result<(), WorkerError> {
        let (rank, world_size) = (training.formed.rank as usize, training.formed.world_size as usize);
        if world_size == 1 {
            return engine.connect(Meeting::Alone).await;
        }
        let timeouts = self.run.timeouts.as_ref().ok_or_else(|| WorkerError::RunSpec("timeouts are missing".into()))?;
        let timeout = Duration::from_millis(timeouts.collective_ms);
        let abort = training.control.abort.clone();
        let meeting = match training.formed.transport() {
            Transport::Tcp => {
                let (run_id, generation) = (training.run_id.clone(), training.generation);
                let next_address = training.formed.next_address.clone();
                let previous_address = training.formed.previous_address.clone();
                let lease = Duration::from_millis(timeouts.lease_ms);
                let config =
                    RingConfig { run_id, generation, rank, world_size, next_address, previous_address, timeout, lease };
                self.progress.set_phase(Phase::Reduce);
                Meeting::Ring(RingPlace { config, abort, progress: self.progress.clone() })
            }
            Transport::Nccl => {
                let id = self.communicator_id(engine, training, timeout)?;
                let progress = self.progress.clone();
                self.progress.set_phase(Phase::Reduce);
                Meeting::Nccl(NcclPlace { id, rank, world_size, timeout, abort, progress })
            }
            Transport::Unspecified => {
                let generation = training.generation;
                return Err(WorkerError::RunSpec(format!("generation {generation} meets in a way that is not known")));
            }
        };
        engine.connect(meeting).await
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
                    let peer = Peer { rank: 0, address: training.formed.first_address.clone() };
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
        not_finite: outcome.not_finite.clone(),
        own_seconds: outcome.own_seconds,
    }
}
