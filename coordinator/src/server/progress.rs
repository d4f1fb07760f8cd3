//! What a person sees while the run goes on.

use crate::{ledger::Skipped, membership::MemberStatus, report::Checkpoints};
use serde::Serialize;
use std::path::PathBuf;

/// Something worth a line.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// Workers can join.
    Listening {
        /// At this address.
        address: String,
        /// Whether over TLS.
        tls: bool,
    },
    /// A worker was admitted.
    WorkerJoined {
        /// Its id.
        worker: u64,
        /// Its name.
        name: String,
    },
    /// A worker has loaded the base model.
    WorkerReady {
        /// Its id.
        worker: u64,
        /// Its name.
        name: String,
        /// Workers ready now.
        ready: usize,
        /// Workers needed.
        wanted: usize,
    },
    /// Training begins.
    GenerationFormed {
        /// As `epoch.number`.
        generation: String,
        /// Workers in it.
        world_size: usize,
        /// Steps already done.
        start_step: u64,
    },
    /// A step is durable.
    Step {
        /// 1-based number.
        step: u64,
        /// Steps in the whole run.
        total_steps: u64,
        /// Mean loss over the global batch.
        loss: f64,
        /// Tokens that the mean was taken over.
        loss_tokens: u64,
        /// Tokens of the step.
        tokens: u64,
        /// Global gradient norm before clipping.
        grad_norm: f64,
        /// Learning rate.
        learning_rate: f64,
        /// Wall time since the step before it.
        seconds: f64,
        /// How often the step was recomputed with smaller exponents.
        recomputed: u32,
        /// Whether its update was not applied; then its loss is that of what was finite, and it has no gradient norm.
        skipped: bool,
    },
    /// The update of a step was not applied, because a loss or a gradient was not finite (`train.on_nonfinite = "skip"`).
    StepSkipped {
        /// 1-based number.
        step: u64,
        /// In which micro-batches.
        #[serde(flatten)]
        skipped: Skipped,
    },
    /// A checkpoint is durable.
    Checkpoint {
        /// Steps applied.
        step: u64,
        /// Where it lies.
        path: PathBuf,
    },
    /// A checkpoint could not be saved, and training goes on without it (`checkpoint.on_failure = "continue"`).
    CheckpointFailed {
        /// Its step.
        step: u64,
        /// Why.
        reason: String,
    },
    /// An evaluation task is done.
    Evaluation {
        /// Tasks done.
        done: usize,
        /// All tasks.
        total: usize,
    },
    /// A worker is gone.
    WorkerLost {
        /// Its id.
        worker: u64,
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A worker holds the others up (`cluster.on_slow_worker`).
    WorkerSlow {
        /// Its id.
        worker: u64,
        /// Its name.
        name: String,
        /// The newest step that it was judged by.
        step: u64,
        /// Its seconds a token, in times of the others' median.
        ratio: f64,
        /// All of it in a sentence.
        reason: String,
        /// Whether it was asked to leave.
        drained: bool,
    },
    /// No generation can form yet.
    Waiting {
        /// What is missing.
        reason: String,
    },
    /// A person may want to act.
    Warning {
        /// What is the matter.
        message: String,
    },
    /// Training will end early.
    Stopping {
        /// On whose request.
        reason: String,
    },
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// Workers join and load.
    #[default]
    Gathering,
    /// Steps are trained.
    Training,
    /// Base and tuned model are measured.
    Evaluating,
    /// It is over.
    Over,
}

/// The run at a glance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Where it stands.
    pub phase: RunPhase,
    /// Newest durable step.
    pub step: u64,
    /// Step that training started from in this process.
    pub start_step: u64,
    /// Steps in the whole run.
    pub total_steps: u64,
    /// Loss of the newest step.
    pub loss: Option<f64>,
    /// Tokens a second over the last steps.
    pub tokens_per_second: Option<f64>,
    /// Seconds a step over the last steps: times the steps left, the time left.
    pub seconds_per_step: Option<f64>,
    /// Everyone admitted.
    pub workers: Vec<MemberStatus>,
    /// Workers needed.
    pub workers_wanted: usize,
    /// Newest step with a durable checkpoint.
    pub checkpoint: Option<u64>,
    /// Why no generation forms; empty when none is awaited.
    pub waiting: String,
    /// Checkpoints of this process.
    pub checkpoints: Checkpoints,
    /// Evaluation tasks done, and all of them.
    pub evaluation: (usize, usize),
    /// Warnings so far.
    pub warnings: Vec<String>,
}
