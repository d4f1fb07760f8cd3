//! What the membership knows.

use super::{Outcome, SlowPolicy, member::Member, roster::Roster, slowness::Paces};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{self, Generation, NumericsFingerprint, StepReport, Timeouts, Transport},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

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
    /// The generation that did the newest step that counts, of whichever coordinator.
    pub recorded_generation: Generation,
    /// Version of the binary; a worker's must be equal.
    pub version: String,
    /// Workers that train, if so many can be had.
    pub workers: usize,
    /// Fewest workers that train.
    pub min_workers: usize,
    /// How long a generation that no training state depends on waits for all workers, once there are enough.
    pub gather_ms: u64,
    /// SHA-256 (hex) of the base model.
    pub model_sha256: String,
    /// Arithmetic of the run so far; `None` for a new run.
    pub numerics: Option<NumericsFingerprint>,
    /// Newest step of the ledger; 0 for a new run.
    pub head: u64,
    /// Newest step with a checkpoint, at most `head`.
    pub checkpoint: Option<u64>,
    /// Optimizer steps in the whole run.
    pub total_steps: u64,
    /// Steps of the ledger that were skipped.
    pub skipped: BTreeSet<u64>,
    /// So many skipped steps in succession end the run; `None` where no step may be skipped.
    pub max_skipped: Option<u64>,
    /// When a worker is slow, and what follows.
    pub slow: SlowPolicy,
    /// How the run wants its ranks to meet.
    pub collective: v1::Collective,
    /// Steps streamed ahead of the one in training, at most.
    pub prefetch_steps: u64,
    /// Whether an evaluation follows training.
    pub evaluate: bool,
    /// The timeout ladder.
    pub timeouts: Timeouts,
}

/// Where the run stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Workers join and load, or come back from a generation that ended.
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
    pub(super) members: Roster,
    pub(super) next_worker: WorkerId,
    pub(super) numerics: Option<NumericsFingerprint>,
    /// Number of the newest generation.
    pub(super) last_generation: u64,
    /// The generation that trains or evaluates.
    pub(super) generation: Option<ActiveGeneration>,
    /// Reports of steps not yet recorded, by step and worker; also of workers that are lost since.
    pub(super) reports: BTreeMap<u64, BTreeMap<WorkerId, StepReport>>,
    /// Newest step handed to the ledger.
    pub(super) recorded: u64,
    /// Number of the generation that trained it, or of the newest that an earlier epoch recorded.
    pub(super) recorded_generation: Generation,
    /// Newest step durable in the ledger.
    pub(super) committed: u64,
    /// Recorded steps that were skipped, as far as they may still matter.
    pub(super) skipped: BTreeSet<u64>,
    /// Whether the ledger is being told that later steps are void.
    pub(super) rewinding: bool,
    /// Newest step whose shards may be streamed.
    pub(super) horizon: u64,
    /// When the newest step was committed, or the generation formed.
    pub(super) committed_at: u64,
    /// How long the newest step took, and the one before it; `None` when nothing is known yet.
    pub(super) step_ms: [Option<u64>; 2],
    /// Newest step with a durable checkpoint.
    pub(super) checkpoint: Option<u64>,
    /// Steps whose states are being saved.
    pub(super) saving: BTreeSet<u64>,
    /// A requested stop: the reason and the last step.
    pub(super) stop: Option<(String, u64)>,
    /// Since when there are enough workers for a generation, while none is formed.
    pub(super) enough_since: Option<u64>,
    /// Names and hosts of workers that were asked to leave because they are slow.
    pub(super) expelled: BTreeSet<(String, String)>,
    /// Why no generation forms; empty when nothing is awaited.
    pub(super) waiting: String,
    /// Generations in succession that failed before they committed anything.
    pub(super) fruitless: u32,
}

/// A numbered membership.
#[derive(Clone, Debug)]
pub(super) struct ActiveGeneration {
    pub(super) id: Generation,
    /// Workers in rank order, which is that of admission.
    pub(super) ranks: Vec<WorkerId>,
    /// Steps applied to the state that it started from.
    pub(super) start_step: u64,
    /// The rank whose state others start from.
    pub(super) hand_over: Option<usize>,
    /// How they meet.
    pub(super) transport: Transport,
    /// Whether rank 0 has told the secret that they meet by, where one is needed.
    pub(super) communicator_made: bool,
    /// Its last step, when it is to end so that another one can form.
    pub(super) closing: Option<Closing>,
    /// How fast its ranks are.
    pub(super) paces: Arc<Paces>,
}

/// How a generation comes to an end at a step boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closing {
    pub(super) last_step: u64,
    /// Whether all that know the state then leave, so that it must be kept.
    pub(super) checkpoint: bool,
}

impl ActiveGeneration {
    pub(super) fn rank_of(&self, worker: WorkerId) -> Option<usize> {
        self.ranks.binary_search(&worker).ok()
    }
}

/// A worker's place in a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its rank.
    pub rank: usize,
    /// Ranks of the generation.
    pub world_size: usize,
    /// Steps applied before the generation's first.
    pub start_step: u64,
    /// Whether others start from this worker's state.
    pub hand_over: bool,
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
    /// Whether it was found slow in it.
    pub slow: bool,
}

impl State {
    /// A run with no worker yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            phase: Phase::Gathering,
            members: Roster::default(),
            next_worker: 1,
            numerics: settings.numerics.clone(),
            last_generation: settings.last_generation,
            generation: None,
            reports: BTreeMap::new(),
            recorded: settings.head,
            recorded_generation: settings.recorded_generation,
            committed: settings.head,
            skipped: settings.skipped.clone(),
            rewinding: false,
            horizon: settings.head,
            committed_at: 0,
            step_ms: [None; 2],
            checkpoint: settings.checkpoint,
            saving: BTreeSet::new(),
            stop: None,
            enough_since: None,
            expelled: BTreeSet::new(),
            waiting: String::new(),
            fruitless: 0,
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

    /// Newest step handed to the ledger.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.recorded
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

    /// The last step that the current generation is given, and whether the state after it must be kept: that of training, or
    /// an earlier one where another generation is to form.
    #[must_use]
    pub fn boundary(&self) -> (u64, bool) {
        let end = (self.end_step(), true);
        match self.generation.as_ref().and_then(|active| active.closing) {
            Some(closing) if closing.last_step < end.0 => (closing.last_step, closing.checkpoint),
            _ => end,
        }
    }

    /// Newest step whose shards may be streamed: the one in training and a few more. It falls only when another generation
    /// forms, which begins anew.
    #[must_use]
    pub fn horizon(&self) -> u64 {
        self.horizon
    }

    /// Why no generation forms, in words; empty when none is awaited.
    #[must_use]
    pub fn waiting(&self) -> &str {
        &self.waiting
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
        self.horizon = (self.committed + 1 + ahead).min(self.boundary().0).max(self.horizon);
    }

    /// Newest step of the ledger when this epoch began.
    #[must_use]
    pub fn start_step(&self) -> u64 {
        self.settings.head
    }

    /// Steps applied before the current generation's first.
    #[must_use]
    pub fn generation_start(&self) -> u64 {
        self.generation.as_ref().map_or(self.committed, |active| active.start_step)
    }

    /// Ranks of the current generation; 0 when there is none.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.generation.as_ref().map_or(0, |active| active.ranks.len())
    }

    /// Everyone admitted, in order of admission.
    pub fn members(&self) -> impl Iterator<Item = MemberStatus> + '_ {
        self.members.iter().map(|(worker, member)| self.status(*worker, member))
    }

    /// One worker, if it is a member.
    #[must_use]
    pub fn member(&self, worker: WorkerId) -> Option<MemberStatus> {
        self.members.get(&worker).map(|member| self.status(worker, member))
    }

    fn status(&self, worker: WorkerId, member: &Member) -> MemberStatus {
        MemberStatus {
            worker,
            name: member.name.clone(),
            ready: member.ready(),
            rank: self.generation.as_ref().and_then(|g| g.rank_of(worker)),
            slow: self.generation.as_ref().is_some_and(|g| g.paces.found_slow(worker)),
        }
    }

    /// How many of the members are ready.
    #[must_use]
    pub fn ready_members(&self) -> usize {
        self.members.census().ready()
    }

    /// Whether a worker is a member.
    #[must_use]
    pub fn is_member(&self, worker: WorkerId) -> bool {
        self.members.contains_key(&worker)
    }

    /// A worker's place in a generation.
    ///
    /// # Errors
    /// `UnknownWorker` when it was never admitted or is gone; `StaleGeneration` when the generation is not the current
    /// one or the worker has no rank in it.
    pub fn seat(&self, worker: WorkerId, generation: Option<Generation>) -> Result<Seat, Failure> {
        if !self.is_member(worker) {
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
        Ok(Seat {
            rank,
            world_size: active.ranks.len(),
            start_step: active.start_step,
            hand_over: active.hand_over == Some(rank),
        })
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
