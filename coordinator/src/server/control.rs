//! The event loop: it alone owns the membership, feeds it events and carries out its effects.

use super::{
    blueprint::Blueprint,
    display::Display,
    metrics::StepMetrics,
    progress::RunEvent,
    recorder::{Entry, Recorder},
};
use crate::{
    checkpoint::RunRecord,
    evaluation::{Next, Queue},
    membership::{self, Effect, Event, KnownStep, Level, MemberStatus, Outcome, Phase, Seat, State, WorkerId},
    site::Site,
};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{CoordinatorMessage, Generation, JoinRequest, Ready, coordinator_message::Message, task_result},
};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Reports of steps that a worker may bring with its state; steps are not streamed so far ahead.
const MOST_REPORTS: usize = 1100;

/// What the services ask of the loop.
pub(super) enum Command {
    /// Something happened.
    Event(Event),
    /// A worker can enter a generation.
    Ready(WorkerId, Ready),
    /// A worker wants in.
    Join(JoinRequest, oneshot::Sender<Result<WorkerId, Failure>>),
    /// A worker opens its session.
    Open { worker: WorkerId, session: Session, reply: oneshot::Sender<Result<(), Failure>> },
    /// A session's stream ended.
    Closed(WorkerId),
    /// Which rank a worker has in a generation.
    Seat { worker: WorkerId, generation: Option<Generation>, reply: oneshot::Sender<Result<Seat, Failure>> },
    /// What a worker's upload of the state after a step is for.
    Upload {
        worker: WorkerId,
        generation: Option<Generation>,
        step: u64,
        reply: oneshot::Sender<Result<Purpose, Failure>>,
    },
    /// State hash of a step that is recorded and not void.
    StateOf(u64, oneshot::Sender<Option<Vec<u8>>>),
    /// Directory of the newest checkpoint, if it is of this step.
    CheckpointOf(u64, oneshot::Sender<Option<String>>),
    /// A checkpoint is durable, in this directory of the store; for people, at this path.
    Saved { step: u64, directory: String, path: PathBuf },
    /// A checkpoint could not be saved, and the run goes on without it.
    NotSaved { step: u64, reason: String },
    /// A worker wants an evaluation task.
    NextTask { worker: WorkerId, generation: Option<Generation>, reply: TaskReply },
    /// A worker has a result.
    Result {
        worker: WorkerId,
        generation: Option<Generation>,
        task: u64,
        result: task_result::Result,
        reply: oneshot::Sender<Result<(), Failure>>,
    },
}

pub(super) type TaskReply = oneshot::Sender<Result<Next, Failure>>;

/// The coordinator's end of a worker's session.
pub(super) struct Session {
    /// Messages to the worker; taken away when no more follow.
    pub(super) outbound: Option<mpsc::Sender<Result<CoordinatorMessage, Status>>>,
    /// Ends the task that reads the worker's messages.
    pub(super) reader: CancellationToken,
}

/// What a state is uploaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be kept.
    Checkpoint,
    /// For other ranks to start from.
    HandOver,
}

/// What the streaming services follow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct View {
    pub(super) generation: Option<Generation>,
    pub(super) recorded: u64,
    pub(super) committed: u64,
    pub(super) horizon: u64,
    /// Last step of the generation, and whether the state after it must be kept.
    pub(super) boundary: (u64, bool),
    /// Last step of training.
    pub(super) end_step: u64,
    pub(super) over: bool,
}

impl View {
    pub(super) fn of(state: &State) -> Self {
        Self {
            generation: state.generation(),
            recorded: state.recorded(),
            committed: state.committed(),
            horizon: state.horizon(),
            boundary: state.boundary(),
            end_step: state.end_step(),
            over: matches!(state.phase(), Phase::Over(_)),
        }
    }

    /// Whether a generation is still at work.
    pub(super) fn alive(&self, generation: Generation) -> bool {
        !self.over && self.generation == Some(generation)
    }
}

/// The loop's own state.
pub(super) struct Control {
    pub(super) state: State,
    pub(super) site: Site,
    pub(super) blueprint: Arc<Blueprint>,
    pub(super) record: RunRecord,
    pub(super) recorder: Recorder,
    pub(super) queue: Queue,
    pub(super) view: watch::Sender<View>,
    pub(super) display: Display,
    pub(super) sessions: BTreeMap<WorkerId, Session>,
    /// Workers that asked for a task when none was free.
    pub(super) waiting: Vec<(WorkerId, TaskReply)>,
    /// State hashes of all steps that are recorded and not void.
    pub(super) hashes: BTreeMap<u64, Vec<u8>>,
    /// Step and directory of the newest checkpoint.
    pub(super) checkpoint: Option<(u64, String)>,
    /// Metrics of steps that are not yet durable.
    pub(super) in_flight: BTreeMap<u64, StepMetrics>,
    /// Metrics of all steps that are committed and not void, as far as they are known.
    pub(super) metrics: Vec<StepMetrics>,
    pub(super) last_step_at: Instant,
    pub(super) started_at: Instant,
}

/// What is left when the loop has ended.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) recorder: Recorder,
    pub(super) queue: Queue,
    pub(super) display: Display,
    pub(super) workers: Vec<MemberStatus>,
    pub(super) metrics: Vec<StepMetrics>,
}

impl Control {
    /// Runs until the run is over and every worker has taken its leave, or has had time to.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Ended {
        let heartbeat = Duration::from_millis(self.blueprint.run.cluster.heartbeat_ms.max(1));
        let grace = Duration::from_millis(self.blueprint.run.cluster.lease_ms);
        let mut ticks = interval(heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut over_at: Option<(Instant, Outcome, Vec<MemberStatus>)> = None;
        loop {
            if over_at.is_none()
                && let Phase::Over(outcome) = self.state.phase()
            {
                let ranked = self.state.members().filter(|m| m.rank.is_some()).collect();
                over_at = Some((Instant::now(), outcome.clone(), ranked));
            }
            if let Some((at, outcome, workers)) = &over_at
                && (self.sessions.is_empty() || at.elapsed() >= grace)
            {
                let (outcome, workers) = (outcome.clone(), workers.clone());
                self.sessions.values().for_each(|session| session.reader.cancel());
                let Self { recorder, queue, display, metrics, .. } = self;
                return Ended { outcome, recorder, queue, display, workers, metrics };
            }
            tokio::select! {
                // Leases are looked at however much is said.
                biased;
                _ = ticks.tick() => self.feed(Event::Tick),
                Some(command) = commands.recv() => self.handle(command),
            }
        }
    }

    fn handle(&mut self, command: Command) {
        // They come all the time, and lead to no task.
        let heartbeat = matches!(command, Command::Event(Event::Heartbeat { .. }));
        match command {
            Command::Event(event) => self.feed(event),
            Command::Ready(worker, ready) => {
                let known = self.known(&ready);
                self.feed(Event::Ready { worker, ready, known });
            }
            Command::Join(request, reply) => {
                let answer = self.feed_join(request);
                let _ = reply.send(answer);
            }
            Command::Open { worker, session, reply } => {
                let answer = self.open(worker, session);
                let _ = reply.send(answer);
            }
            Command::Closed(worker) => {
                self.sessions.remove(&worker);
                self.feed(Event::Disconnected { worker });
            }
            Command::Seat { worker, generation, reply } => {
                let _ = reply.send(self.state.seat(worker, generation));
            }
            Command::Upload { worker, generation, step, reply } => {
                let _ = reply.send(self.purpose(worker, generation, step));
            }
            Command::StateOf(step, reply) => {
                let _ = reply.send(self.hashes.get(&step).cloned());
            }
            Command::CheckpointOf(step, reply) => {
                let newest = self.checkpoint.as_ref().filter(|(newest, _)| *newest == step);
                let _ = reply.send(newest.map(|(_, directory)| directory.clone()));
            }
            Command::Saved { step, directory, path } => {
                self.display.saved(step, path);
                self.feed(Event::CheckpointSaved { step });
                if self.state.checkpoint() == Some(step) {
                    self.checkpoint = Some((step, directory));
                }
            }
            Command::NotSaved { step, reason } => {
                self.display.not_saved(step, reason);
                self.feed(Event::CheckpointFailed { step });
            }
            Command::NextTask { worker, generation, reply } => match self.state.seat(worker, generation) {
                Ok(_) => self.waiting.push((worker, reply)),
                Err(failure) => drop(reply.send(Err(failure))),
            },
            Command::Result { worker, generation, task, result, reply } => {
                let answer = self.take_result(worker, generation, task, result);
                let _ = reply.send(answer);
            }
        }
        if !heartbeat {
            self.serve_waiting();
        }
    }

    fn known(&self, ready: &Ready) -> KnownStep {
        let Some(held) = &ready.held else { return KnownStep::default() };
        let planned = |step: u64| self.blueprint.totals(step).map(|totals| (step, totals));
        // As many as may be streamed ahead, and no more, are of any use.
        let reports = held.reports.iter().rev().take(MOST_REPORTS);
        KnownStep {
            state_sha256: self.hashes.get(&held.step).cloned(),
            planned: reports.filter_map(|report| planned(report.step)).collect(),
        }
    }

    /// A state that is recorded may also come late, from a worker whose generation has ended meanwhile: its hash tells that it
    /// is the run's.
    fn purpose(&self, worker: WorkerId, generation: Option<Generation>, step: u64) -> Result<Purpose, Failure> {
        match self.state.seat(worker, generation) {
            Ok(seat) if seat.hand_over && seat.start_step == step => Ok(Purpose::HandOver),
            Ok(seat) if seat.rank == 0 => Ok(Purpose::Checkpoint),
            Ok(seat) => {
                let message = format!("rank {} uploaded a state that nobody asked it for", seat.rank);
                Err(Failure::new(ErrorCode::BadMessage, message))
            }
            Err(failure) if failure.code == ErrorCode::StaleGeneration && generation.is_some() => {
                if self.hashes.contains_key(&step) { Ok(Purpose::Checkpoint) } else { Err(failure) }
            }
            Err(failure) => Err(failure),
        }
    }

    fn open(&mut self, worker: WorkerId, session: Session) -> Result<(), Failure> {
        if !self.state.is_member(worker) {
            let message = format!("worker {worker} is not a member of this run: join again");
            return Err(Failure::new(ErrorCode::UnknownWorker, message));
        }
        if self.sessions.contains_key(&worker) {
            let message = format!("worker {worker} has a session already");
            return Err(Failure::new(ErrorCode::BadMessage, message));
        }
        self.sessions.insert(worker, session);
        self.feed(Event::Connected { worker });
        Ok(())
    }

    fn take_result(
        &mut self,
        worker: WorkerId,
        generation: Option<Generation>,
        task: u64,
        result: task_result::Result,
    ) -> Result<(), Failure> {
        self.state.seat(worker, generation)?;
        self.queue.report(worker, task, result)?;
        let (done, total) = self.queue.progress();
        self.display.emit(RunEvent::Evaluation { done, total });
        self.display.progress(|p| p.evaluation = (done, total));
        if self.queue.is_done() {
            self.feed(Event::EvaluationFinished);
        }
        Ok(())
    }

    /// Answers workers that wait for a task, as far as there is an answer.
    fn serve_waiting(&mut self) {
        for (worker, reply) in std::mem::take(&mut self.waiting) {
            // What it was handed out before it was lost is back already; nothing may be handed to it any more.
            if reply.is_closed() || !self.state.is_member(worker) {
                continue;
            }
            let over = matches!(self.state.phase(), Phase::Over(_));
            match if over { Next::Done } else { self.queue.next(worker) } {
                Next::Wait => self.waiting.push((worker, reply)),
                next => {
                    if reply.send(Ok(next)).is_err() {
                        self.queue.requeue(worker);
                    }
                }
            }
        }
    }

    fn feed_join(&mut self, request: JoinRequest) -> Result<WorkerId, Failure> {
        let mut answer = Err(Failure::new(ErrorCode::Internal, "the join was not decided"));
        for effect in self.decide(Event::Join(request)) {
            match effect {
                Effect::Admit { worker } => answer = Ok(worker),
                Effect::Refuse(failure) => answer = Err(failure),
                other => self.carry_out(other),
            }
        }
        answer
    }

    pub(super) fn feed(&mut self, event: Event) {
        let committed = match event {
            Event::Committed { step } => self.in_flight.remove(&step),
            _ => None,
        };
        for effect in self.decide(event) {
            self.carry_out(effect);
        }
        if let Some(metrics) = committed {
            self.display.step(&metrics, self.blueprint.total_steps);
            self.metrics.push(metrics);
        }
    }

    /// One transition, and what people see of it.
    fn decide(&mut self, event: Event) -> Vec<Effect> {
        let now = u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (subject, generation) = (event.worker(), self.state.generation());
        let effects = membership::step(&mut self.state, event, now);
        self.display.transition(&self.state, subject, &effects);
        if self.state.generation() != generation {
            // The first step of a generation is timed from here.
            self.last_step_at = Instant::now();
        }
        self.view.send_if_modified(|view| {
            let next = View::of(&self.state);
            std::mem::replace(view, next) != next
        });
        effects
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Admit { .. } | Effect::Refuse(_) => {}
            Effect::Send { worker, message } => self.send(worker, message),
            Effect::Dismiss { worker, failure } => {
                if let Some(session) = self.sessions.remove(&worker) {
                    if let Some(outbound) = session.outbound {
                        let _ = outbound.try_send(Err(failure.into()));
                    }
                    session.reader.cancel();
                }
            }
            Effect::RecordNumerics(numerics) => {
                self.record.numerics = Some(numerics.into());
                self.recorder.write(Entry::Run(self.record.clone()));
            }
            Effect::Persist(commit) => self.persist(commit),
            Effect::Rewind { to } => self.rewind(to),
            Effect::Slow(slow) => self.slow(slow),
            Effect::Requeue { worker } => self.queue.requeue(worker),
            Effect::Evaluate => {
                let (done, total) = self.queue.progress();
                self.display.progress(|p| p.evaluation = (done, total));
            }
            Effect::Finish(outcome) => tracing::info!(exit_code = outcome.exit_code, "{}", outcome.reason),
            Effect::Note { level: Level::Info, reason } => tracing::info!("{reason}"),
            Effect::Note { level: Level::Warn, reason } => tracing::warn!("{reason}"),
        }
    }

    /// A worker takes few messages, so a full queue means that it no longer reads: its lease will find it.
    fn send(&mut self, worker: WorkerId, message: Message) {
        let Some(session) = self.sessions.get_mut(&worker) else { return };
        let last = matches!(message, Message::Goodbye(_));
        if let Some(outbound) = &session.outbound
            && outbound.try_send(Ok(CoordinatorMessage { message: Some(message) })).is_err()
        {
            tracing::warn!(worker, "a message could not be sent");
        }
        if last {
            session.outbound = None;
        }
    }
}
