//! From transitions to what people see: the event stream and the progress at a glance.

use super::{
    metrics::StepMetrics,
    progress::{Progress, RunEvent, RunPhase},
};
use crate::{
    membership::{Effect, Phase, State},
    report::Checkpoints,
};
use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    time::Duration,
};
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
    pub(super) evaluation_began: Option<Instant>,
}

impl Display {
    pub(super) fn new(events: broadcast::Sender<RunEvent>, progress: watch::Sender<Progress>) -> Self {
        Self { events, progress, recent: VecDeque::new(), evaluation_began: None }
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

    /// What changed between two states.
    pub(super) fn transition(&mut self, before: &State, after: &State, effects: &[Effect]) {
        let old: BTreeMap<_, _> = before.members().map(|m| (m.worker, m)).collect();
        let new: BTreeMap<_, _> = after.members().map(|m| (m.worker, m)).collect();
        let wanted = self.progress.borrow().workers_wanted;
        let ready = new.values().filter(|m| m.ready).count();
        for member in new.values() {
            let (worker, name) = (member.worker, member.name.clone());
            let known = old.get(&worker);
            if known.is_none() {
                self.emit(RunEvent::WorkerJoined { worker, name: name.clone() });
            }
            if member.ready && known.is_some_and(|m| !m.ready) {
                self.emit(RunEvent::WorkerReady { worker, name, ready, wanted });
            }
        }
        // When the run is over everyone goes home: that is no loss.
        let over = matches!(before.phase(), Phase::Over(_));
        for effect in effects {
            if let Effect::Dismiss { worker, failure } = effect
                && !over
                && let Some(member) = old.get(worker)
            {
                let (name, reason) = (member.name.clone(), failure.message.clone());
                self.emit(RunEvent::WorkerLost { worker: *worker, name, reason });
            }
        }
        if before.generation() != after.generation()
            && let Some(generation) = after.generation()
        {
            let (world_size, start_step) = (after.world_size(), after.generation_start());
            self.emit(RunEvent::GenerationFormed { generation: generation.to_string(), world_size, start_step });
        }
        if before.waiting() != after.waiting() && !after.waiting().is_empty() {
            self.emit(RunEvent::Waiting { reason: after.waiting().to_owned() });
        }
        if before.stopping().is_none()
            && let Some(reason) = after.stopping()
        {
            self.emit(RunEvent::Stopping { reason: reason.to_owned() });
        }
        if before.phase() != after.phase() && *after.phase() == Phase::Evaluating {
            self.evaluation_began = Some(Instant::now());
        }
        self.progress.send_if_modified(|p| {
            let next = Progress {
                phase: match after.phase() {
                    Phase::Gathering => RunPhase::Gathering,
                    Phase::Training => RunPhase::Training,
                    Phase::Evaluating => RunPhase::Evaluating,
                    Phase::Over(_) => RunPhase::Over,
                },
                step: after.committed(),
                checkpoint: after.checkpoint(),
                waiting: after.waiting().to_owned(),
                workers: new.into_values().collect(),
                ..p.clone()
            };
            std::mem::replace(p, next.clone()) != next
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
