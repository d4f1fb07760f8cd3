//! From transitions to what people see: the event stream and the progress at a glance.

use super::{
    metrics::StepMetrics,
    progress::{Progress, RunEvent, RunPhase},
};
use crate::{
    membership::{Effect, Phase, State, WorkerId},
    report::Checkpoints,
};
use ballast_proto::v1::{Generation, coordinator_message::Message};
use std::{collections::VecDeque, path::PathBuf, time::Duration};
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

/// Steps over which speed is averaged.
const SPEED_WINDOW: usize = 20;

/// Everyone who watches the run.
pub(super) struct Display {
    events: broadcast::Sender<RunEvent>,
    progress: watch::Sender<Progress>,
    /// Seconds and tokens of the last steps.
    recent: VecDeque<(f64, u64)>,
    /// What was shown last: the generation, and whether a stop was asked for.
    generation: Option<Generation>,
    stopping: bool,
    pub(super) evaluation_began: Option<Instant>,
}

impl Display {
    pub(super) fn new(events: broadcast::Sender<RunEvent>, progress: watch::Sender<Progress>) -> Self {
        let (recent, generation) = (VecDeque::new(), None);
        Self { events, progress, recent, generation, stopping: false, evaluation_began: None }
    }

    /// Tells everyone. Nobody listening is fine.
    pub(super) fn emit(&self, event: RunEvent) {
        let _ = self.events.send(event);
    }

    pub(super) fn progress(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    /// Warnings so far.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.progress.borrow().warnings.clone()
    }

    pub(super) fn warn(&self, message: String) {
        tracing::warn!("{message}");
        self.progress(|p| p.warnings.push(message.clone()));
        self.emit(RunEvent::Warning { message });
    }

    /// A checkpoint is durable.
    pub(super) fn saved(&self, step: u64, path: PathBuf) {
        self.progress(|p| p.checkpoints.saved += 1);
        self.emit(RunEvent::Checkpoint { step, path });
    }

    /// A checkpoint is missing, and the run goes on.
    pub(super) fn not_saved(&self, step: u64, reason: String) {
        self.progress(|p| p.checkpoints.failed += 1);
        let failed = self.progress.borrow().checkpoints.failed;
        self.warn(format!(
            "the checkpoint of step {step} could not be saved ({failed} so far), training goes on until the next: {reason}"
        ));
        self.emit(RunEvent::CheckpointFailed { step, reason });
    }

    /// Checkpoints so far.
    pub(super) fn checkpoints(&self) -> Checkpoints {
        self.progress.borrow().checkpoints
    }

    /// Time since evaluation began.
    pub(super) fn evaluation_time(&self) -> Option<Duration> {
        self.evaluation_began.map(|began| began.elapsed())
    }

    /// Shows what a transition has changed: an event of the worker `subject`, if of one, led to `effects` and the state `after`.
    pub(super) fn transition(&mut self, after: &State, subject: Option<WorkerId>, effects: &[Effect]) {
        let generation = after.generation();
        let regrouped = std::mem::replace(&mut self.generation, generation) != generation;
        // Nobody else's place changes, but with the generation. To look at everyone at every event would be most of the work of a
        // large run.
        if let Some(worker) = subject {
            self.member(after, worker);
        }
        for effect in effects {
            match effect {
                Effect::Admit { worker } => self.member(after, *worker),
                Effect::Slow(slow) => self.member(after, slow.worker),
                Effect::Dismiss { worker, failure } => self.gone(*worker, Some(&failure.message)),
                Effect::Send { worker, message: Message::Goodbye(_) } if !after.is_member(*worker) => {
                    self.gone(*worker, None);
                }
                _ => {}
            }
        }
        if let Some(reason) = broken(after, effects) {
            self.emit(RunEvent::Warning { message: reason.to_owned() });
        }
        if regrouped {
            self.progress(|p| p.workers = after.members().collect());
        }
        if let Some(generation) = generation.filter(|_| regrouped) {
            let (world_size, start_step) = (after.world_size(), after.generation_start());
            self.emit(RunEvent::GenerationFormed { generation: generation.to_string(), world_size, start_step });
        }
        let waiting = (*self.progress.borrow().waiting != *after.waiting()).then(|| after.waiting().to_owned());
        if let Some(reason) = waiting.clone().filter(|reason| !reason.is_empty()) {
            self.emit(RunEvent::Waiting { reason });
        }
        if let Some(reason) = after.stopping()
            && !std::mem::replace(&mut self.stopping, true)
        {
            self.emit(RunEvent::Stopping { reason: reason.to_owned() });
        }
        self.progress.send_if_modified(|p| {
            let phase = phase(after);
            if phase == RunPhase::Evaluating && p.phase != phase {
                self.evaluation_began = Some(Instant::now());
            }
            let changed =
                waiting.is_some() || (p.phase, p.step, p.checkpoint) != (phase, after.committed(), after.checkpoint());
            (p.phase, p.step, p.checkpoint) = (phase, after.committed(), after.checkpoint());
            if let Some(waiting) = waiting {
                p.waiting = waiting;
            }
            changed
        });
        debug_assert!(after.members().eq(self.progress.borrow().workers.iter().cloned()), "not the members are shown");
    }

    /// Shows a worker that has come, or is ready.
    fn member(&self, after: &State, worker: WorkerId) {
        let now = after.member(worker);
        self.progress.send_if_modified(|p| {
            let place = p.workers.binary_search_by_key(&worker, |member| member.worker);
            match (place, now) {
                (Err(place), Some(now)) => {
                    self.emit(RunEvent::WorkerJoined { worker, name: now.name.clone() });
                    p.workers.insert(place, now);
                }
                (Ok(place), Some(now)) if p.workers[place] != now => {
                    if now.ready && !p.workers[place].ready {
                        let (ready, wanted) = (after.ready_members(), p.workers_wanted);
                        self.emit(RunEvent::WorkerReady { worker, name: now.name.clone(), ready, wanted });
                    }
                    p.workers[place] = now;
                }
                _ => return false,
            }
            true
        });
    }

    /// Shows that a worker is gone; `lost` is why, where that is a loss.
    fn gone(&self, worker: WorkerId, lost: Option<&str>) {
        self.progress.send_if_modified(|p| {
            let Ok(place) = p.workers.binary_search_by_key(&worker, |member| member.worker) else { return false };
            let name = p.workers.remove(place).name;
            // When the run is over everyone goes home: that is no loss.
            if let Some(reason) = lost.filter(|_| p.phase != RunPhase::Over) {
                self.emit(RunEvent::WorkerLost { worker, name, reason: reason.to_owned() });
            }
            true
        });
    }

    /// A step is durable.
    pub(super) fn step(&mut self, metrics: &StepMetrics, total_steps: u64) {
        self.recent.push_back((metrics.seconds, metrics.tokens));
        if self.recent.len() > SPEED_WINDOW {
            self.recent.pop_front();
        }
        let seconds: f64 = self.recent.iter().map(|(seconds, _)| seconds).sum();
        let tokens: u64 = self.recent.iter().map(|(_, tokens)| tokens).sum();
        if let Some(skipped) = metrics.skipped.clone() {
            tracing::warn!(step = metrics.step, "skipped: {skipped}");
            self.emit(RunEvent::StepSkipped { step: metrics.step, skipped });
        }
        self.progress(|p| {
            if metrics.skipped.is_none() {
                p.loss = Some(metrics.loss);
            }
            if seconds > 0.0 {
                p.tokens_per_second = Some(tokens as f64 / seconds);
                p.seconds_per_step = Some(seconds / self.recent.len() as f64);
            }
        });
        self.emit(RunEvent::Step {
            step: metrics.step,
            total_steps,
            loss: metrics.loss,
            loss_tokens: metrics.loss_tokens,
            tokens: metrics.tokens,
            grad_norm: metrics.grad_norm,
            learning_rate: metrics.learning_rate,
            seconds: metrics.seconds,
            recomputed: metrics.recomputed,
            skipped: metrics.skipped.is_some(),
        });
    }
}

fn phase(state: &State) -> RunPhase {
    match state.phase() {
        Phase::Gathering => RunPhase::Gathering,
        Phase::Training => RunPhase::Training,
        Phase::Evaluating => RunPhase::Evaluating,
        Phase::Over(_) => RunPhase::Over,
    }
}

/// Why a generation has to be given up, where it lost nobody: a loss tells that itself, and so does the end of the run.
fn broken<'a>(after: &State, effects: &'a [Effect]) -> Option<&'a str> {
    let lost = effects.iter().any(|effect| matches!(effect, Effect::Dismiss { .. }));
    if lost || matches!(after.phase(), Phase::Over(_)) {
        return None;
    }
    effects.iter().find_map(|effect| match effect {
        Effect::Send { message: Message::AbortGeneration(abort), .. } => Some(abort.reason.as_str()),
        _ => None,
    })
}
