//! What the membership knows.

use super::{Outcome, StepTotals};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{self, Generation, NumericsFingerprint, StateSource, StepReport, Timeouts, Transport},
};
use std::collections::BTreeMap;

/// Identity of one membership of one worker; never reused within an epoch.
pub type WorkerId = u64;

/// A step that takes less is short: the way of its data may take a noticeable part of it.
const SHORT_STEP_MS: u64 = 2000;

/// What never changes while the coordinator lives.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Coordinator epoch: raised with every start on a run directory.
    pub epoch: u64,
    /// Number of the newest generation that any earlier epoch formed; 0 when there was none.
    pub last_generation: u64,
    /// Version of the binary; a worker's must be equal.
    pub version: String,
    /// Workers that train.
    pub workers: usize,
    /// Whether a worker that is lost before training starts may be replaced by another one that joins. Where it
    /// cannot (a supervisor started exactly as many as are needed), its failure ends the run.
    pub replaceable: bool,
    /// SHA-256 (hex) of the base model.
    pub model_sha256: String,
    /// Arithmetic of the run so far; `None` for a new run.
    pub numerics: Option<NumericsFingerprint>,
    /// Where training starts.
    pub start: Start,
    /// Optimizer steps in the whole run.
    pub total_steps: u64,
    /// How the run wants its ranks to meet.
    pub collective: v1::Collective,
    /// Steps streamed ahead of the one in training, at most.
    pub prefetch_steps: u64,
    /// Whether an evaluation follows training.
    pub evaluate: bool,
    /// The timeout ladder.
    pub timeouts: Timeouts,
}

/// The state that training starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A new adapter, from the seed.
    Seed,
    /// The checkpoint of this step.
    Checkpoint(u64),
}

impl Start {
    /// Steps applied to it.
    #[must_use]
    pub fn step(self) -> u64 {
        match self {
            Self::Seed => 0,
            Self::Checkpoint(step) => step,
        }
    }

    pub(super) fn source(self) -> StateSource {
        match self {
            Self::Seed => StateSource::Seed,
            Self::Checkpoint(_) => StateSource::Checkpoint,
        }
    }
}

/// Where the run stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Workers join and load.
    Gathering,
    /// A generation trains.
    Training,
    /// A generation evaluates.
    Evaluating,
    /// Nothing happens any more.
    Over(Outcome),
}

/// The membership.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) settings: Settings,
    pub(super) phase: Phase,
    pub(super) members: BTreeMap<WorkerId, Member>,
    pub(super) next_worker: WorkerId,
    pub(super) numerics: Option<NumericsFingerprint>,
    /// Number of the newest generation.
    pub(super) last_generation: u64,
    /// The generation that trains or evaluates.
    pub(super) generation: Option<ActiveGeneration>,
    /// Newest step handed to the ledger.
    pub(super) recorded: u64,
    /// Newest step durable in the ledger.
    pub(super) committed: u64,
    /// Newest step whose shards may be streamed.
    pub(super) horizon: u64,
    /// When the newest step was committed, or the generation formed.
    pub(super) committed_at: u64,
    /// How long the newest step took, and the one before it; `None` when nothing is known yet.
    pub(super) step_ms: [Option<u64>; 2],
    /// Newest step with a durable checkpoint.
    pub(super) checkpoint: Option<u64>,
    /// A requested stop: the reason and the last step.
    pub(super) stop: Option<(String, u64)>,
}

/// One admitted worker.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) ring_address: String,
    pub(super) connected: bool,
    pub(super) ready: bool,
    pub(super) joined_at: u64,
    pub(super) seen_at: u64,
    pub(super) progress: u64,
    pub(super) phase: v1::Phase,
    pub(super) moved_at: u64,
}

/// A numbered membership.
#[derive(Clone, Debug)]
pub(super) struct ActiveGeneration {
    pub(super) id: Generation,
    /// Workers in rank order.
    pub(super) ranks: Vec<WorkerId>,
    /// How they meet.
    pub(super) transport: Transport,
    /// Whether rank 0 has told the secret that they meet by, where one is needed.
    pub(super) communicator_made: bool,
    /// Newest step that each rank reported.
    pub(super) applied: Vec<u64>,
    /// Reports of steps not yet recorded, by step and rank.
    pub(super) reports: BTreeMap<u64, BTreeMap<usize, StepReport>>,
}

impl ActiveGeneration {
    pub(super) fn rank_of(&self, worker: WorkerId) -> Option<usize> {
        self.ranks.iter().position(|w| *w == worker)
    }
}

/// A worker as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its identity.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// Whether its base model is loaded.
    pub ready: bool,
    /// Its rank in the current generation.
    pub rank: Option<usize>,
}

impl State {
    /// A run with no worker yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let step = settings.start.step();
        Self {
            phase: Phase::Gathering,
            members: BTreeMap::new(),
            next_worker: 1,
            numerics: settings.numerics.clone(),
            last_generation: settings.last_generation,
            generation: None,
            recorded: step,
            committed: step,
            horizon: step,
            committed_at: 0,
            step_ms: [None; 2],
            checkpoint: match settings.start {
                Start::Seed => None,
                Start::Checkpoint(step) => Some(step),
            },
            stop: None,
            settings,
        }
    }

    /// Where the run stands.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The generation that trains or evaluates, if there is one.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.generation.as_ref().map(|g| g.id)
    }

    /// Newest durable step.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Newest step with a durable checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> Option<u64> {
        self.checkpoint
    }

    /// The last step of training: the run's, or an earlier one when a stop was requested.
    #[must_use]
    pub fn end_step(&self) -> u64 {
        self.stop.as_ref().map_or(self.settings.total_steps, |(_, step)| *step)
    }

    /// Why training will end early, if a stop was requested.
    #[must_use]
    pub fn stopping(&self) -> Option<&str> {
        self.stop.as_ref().map(|(reason, _)| reason.as_str())
    }

    /// Newest step whose shards may be streamed: the one in training and a few more. It never falls.
    #[must_use]
    pub fn horizon(&self) -> u64 {
        self.horizon
    }

    /// Moves the horizon ahead of the newest durable step.
    ///
    /// Streaming ahead hides the way of the data, which matters for short steps. It also delays a requested stop, which
    /// waits for all that was streamed; that matters for long steps, and so nothing is streamed ahead of those.
    pub(super) fn advance_horizon(&mut self) {
        let slowest = self.step_ms.iter().max().copied().flatten();
        let ahead = match slowest {
            Some(ms) if ms < SHORT_STEP_MS => self.settings.prefetch_steps,
            _ => 0,
        };
        self.horizon = (self.committed + 1 + ahead).min(self.end_step()).max(self.horizon);
    }

    /// Step that training started from in this epoch.
    #[must_use]
    pub fn start_step(&self) -> u64 {
        self.settings.start.step()
    }

    /// Everyone admitted, in order of admission.
    pub fn members(&self) -> impl Iterator<Item = MemberStatus> + '_ {
        self.members.iter().map(|(worker, member)| MemberStatus {
            worker: *worker,
            name: member.name.clone(),
            ready: member.ready,
            rank: self.generation.as_ref().and_then(|g| g.rank_of(*worker)),
        })
    }

    /// Rank and world size of a worker in a generation.
    ///
    /// # Errors
    /// `UnknownWorker` when it was never admitted or is gone; `StaleGeneration` when the generation is not the current
    /// one or the worker has no rank in it.
    pub fn rank_in(&self, worker: WorkerId, generation: Option<Generation>) -> Result<(usize, usize), Failure> {
        if !self.members.contains_key(&worker) {
            return Err(Failure::new(
                ErrorCode::UnknownWorker,
                format!("worker {worker} is not a member of this run: join again"),
            ));
        }
        let asked = generation.map_or_else(|| "none".to_owned(), |g| g.to_string());
        let stale = |current: String| {
            Failure::new(ErrorCode::StaleGeneration, format!("the message is of generation {asked}, {current}"))
        };
        let Some(active) = &self.generation else {
            return Err(stale("and no generation is active".into()));
        };
        if generation != Some(active.id) {
            return Err(stale(format!("the current one is {}", active.id)));
        }
        let rank = active
            .rank_of(worker)
            .ok_or_else(|| stale(format!("and worker {worker} has no rank in generation {}", active.id)))?;
        Ok((rank, active.ranks.len()))
    }

    /// A worker's name and id, for messages.
    pub(super) fn label(&self, worker: WorkerId) -> String {
        self.members
            .get(&worker)
            .map_or_else(|| format!("worker {worker}"), |m| format!("worker {worker} ({})", m.name))
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }
}

impl StepTotals {
    /// Whether a report counts the tokens that the plan has.
    pub(super) fn agree(&self, report: &StepReport) -> bool {
        self.loss_tokens == report.loss_tokens && self.tokens == report.tokens
    }
}
