//! What happens to the membership, and what it wants done.

use super::{SlowWorker, WorkerId};
use ballast_proto::{
    Failure,
    v1::{
        CommunicatorId, Generation, Heartbeat, JoinRequest, NonFinite, NumericsFingerprint, Ready, StepReport,
        coordinator_message::Message,
    },
};

use std::collections::BTreeMap;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A worker asks to be admitted; answered by [`Effect::Admit`] or [`Effect::Refuse`].
    Join(JoinRequest),
    /// An admitted worker opened its session.
    Connected {
        /// Who.
        worker: WorkerId,
    },
    /// A worker can enter a generation.
    Ready {
        /// Who.
        worker: WorkerId,
        /// What it says about itself.
        ready: Ready,
        /// What is known of the step of the state that it holds.
        known: KnownStep,
    },
    /// A worker was asked to stop, and wants to leave at a step boundary.
    Draining {
        /// Who.
        worker: WorkerId,
        /// Why, in its words.
        reason: String,
    },
    /// A worker is alive, and this is how far it has moved.
    Heartbeat {
        /// Who.
        worker: WorkerId,
        /// Progress and phase.
        heartbeat: Heartbeat,
    },
    /// Rank 0 of a generation made the secret by which its ranks find each other.
    CommunicatorMade {
        /// Who.
        worker: WorkerId,
        /// The secret, with its generation.
        id: CommunicatorId,
    },
    /// A rank applied a step.
    StepReported {
        /// Who.
        worker: WorkerId,
        /// What came out.
        report: StepReport,
        /// What the plan says about the reported step; `None` when the plan has no such step.
        planned: Option<StepTotals>,
    },
    /// A rank cannot go on in a generation.
    GenerationFailed {
        /// Who.
        worker: WorkerId,
        /// In which generation.
        generation: Generation,
        /// Why, in the worker's words.
        reason: String,
    },
    /// A worker said something that no worker says.
    Breach {
        /// Who.
        worker: WorkerId,
        /// What is wrong with it.
        failure: Failure,
    },
    /// A worker says farewell.
    Leaving {
        /// Who.
        worker: WorkerId,
        /// What makes it leave; `None` when it leaves in peace.
        failure: Option<Failure>,
    },
    /// A worker's session ended.
    Disconnected {
        /// Who.
        worker: WorkerId,
    },
    /// The record of a step is durable.
    Committed {
        /// The step.
        step: u64,
    },
    /// The ledger has it in writing that all steps after this one are void.
    Rewound {
        /// The step.
        to: u64,
    },
    /// The state after a step is being saved; [`Event::CheckpointSaved`] or [`Event::CheckpointFailed`] follows.
    CheckpointBegun {
        /// The step.
        step: u64,
    },
    /// The checkpoint of a step is durable.
    CheckpointSaved {
        /// The step.
        step: u64,
    },
    /// The state after a step was not saved, and the run is to go on without that checkpoint.
    CheckpointFailed {
        /// The step.
        step: u64,
    },
    /// Every evaluation task has its result.
    EvaluationFinished,
    /// A person or a supervisor wants the run to stop.
    StopRequested {
        /// Who or what, for the log.
        reason: String,
    },
    /// The coordinator itself cannot go on (storage, a supervised process).
    Failed(Failure),
    /// Time has passed.
    Tick,
}

impl Event {
    /// The worker that the event comes from.
    #[must_use]
    pub fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Connected { worker }
            | Self::Ready { worker, .. }
            | Self::Draining { worker, .. }
            | Self::Heartbeat { worker, .. }
            | Self::CommunicatorMade { worker, .. }
            | Self::StepReported { worker, .. }
            | Self::GenerationFailed { worker, .. }
            | Self::Breach { worker, .. }
            | Self::Leaving { worker, .. }
            | Self::Disconnected { worker } => Some(*worker),
            _ => None,
        }
    }
}

/// What the plan says about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTotals {
    /// Tokens that bear loss.
    pub loss_tokens: u64,
    /// All tokens.
    pub tokens: u64,
    /// Micro-batches.
    pub micro_batches: u32,
}

/// What is known of the steps of which a worker speaks when it is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownStep {
    /// SHA-256 of the state after the step that it holds the state of, if the ledger has the step.
    pub state_sha256: Option<Vec<u8>>,
    /// What the plan says about the steps that it reports.
    pub planned: BTreeMap<u64, StepTotals>,
}

/// Something to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Answer the join: admitted under this id.
    Admit {
        /// The new identity.
        worker: WorkerId,
    },
    /// Answer the join: refused.
    Refuse(Failure),
    /// Send a message down a worker's session.
    Send {
        /// To whom.
        worker: WorkerId,
        /// What.
        message: Message,
    },
    /// End a worker's session with an error.
    Dismiss {
        /// Whose.
        worker: WorkerId,
        /// Why.
        failure: Failure,
    },
    /// Record what arithmetic this run is computed with.
    RecordNumerics(NumericsFingerprint),
    /// Make a step durable in the ledger; answered by [`Event::Committed`].
    Persist(Commit),
    /// Make it known to the ledger that all steps after this one are void; answered by [`Event::Rewound`].
    Rewind {
        /// Newest step that still counts.
        to: u64,
    },
    /// Hand the evaluation tasks of a lost worker out again.
    Requeue {
        /// The lost worker.
        worker: WorkerId,
    },
    /// A worker holds the others up: a person may want to know, and the ledger keeps it.
    Slow(SlowWorker),
    /// Start handing out evaluation tasks.
    Evaluate,
    /// The run is over.
    Finish(Outcome),
    /// Tell the log.
    Note {
        /// How loudly.
        level: Level,
        /// What was decided and why.
        reason: String,
    },
}

/// Weight of a [`Effect::Note`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As expected.
    Info,
    /// A person may want to look.
    Warn,
}

/// A step on which all ranks agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The generation that computed it.
    pub generation: Generation,
    /// 1-based number of the step.
    pub step: u64,
    /// SHA-256 of the state after it.
    pub state_sha256: Vec<u8>,
    /// Mean loss over the global batch; of a skipped step, over the micro-batches whose loss was finite.
    pub loss: f64,
    /// Tokens that the mean was taken over.
    pub loss_tokens: u64,
    /// Tokens of the whole step.
    pub tokens: u64,
    /// Global gradient norm before clipping; 0 for a skipped step.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Longest time a rank spent computing, in seconds.
    pub compute_seconds: f64,
    /// Longest time a rank spent in collectives, in seconds.
    pub reduce_seconds: f64,
    /// How often the step was recomputed with smaller exponents.
    pub recomputed: u32,
    /// Micro-batches whose loss or gradient was not finite, ascending: when there are any, the step was skipped.
    pub not_finite: Vec<NonFinite>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Exit code for the process (see [`ballast_proto::exit`]).
    pub exit_code: u8,
    /// One sentence for people.
    pub reason: String,
    /// What went wrong; `None` when the run completed.
    pub failure: Option<Failure>,
}
