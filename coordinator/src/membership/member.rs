//! One worker as the membership knows it.

use ballast_proto::v1::{self, Generation};

/// One admitted worker.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) ring_address: String,
    pub(super) standing: Standing,
    /// Whether it was in a generation before.
    pub(super) veteran: bool,
    /// Why it wants to leave at the next step boundary.
    pub(super) draining: Option<String>,
    /// Whether that is because it is slow, and not its own wish: it may not come back then.
    pub(super) expelled: bool,
    pub(super) joined_at: u64,
    pub(super) seen_at: u64,
    pub(super) progress: u64,
    pub(super) phase: v1::Phase,
    pub(super) moved_at: u64,
}

/// What a member is able to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has not opened its session yet.
    Admitted,
    /// It loads the base model.
    Loading,
    /// It can enter a generation, with this state in its memory.
    Idle(Option<Held>),
    /// It has a rank in this generation, and has not come back from it.
    Engaged {
        generation: Generation,
        /// Newest step that it applied.
        applied: u64,
    },
}

/// A training state in a worker's memory, of which it is known that it is the run's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Held {
    /// Steps applied to it.
    pub(super) step: u64,
}

impl Member {
    pub(super) fn ready(&self) -> bool {
        matches!(self.standing, Standing::Idle(_) | Standing::Engaged { .. })
    }

    pub(super) fn idle(&self) -> bool {
        matches!(self.standing, Standing::Idle(_))
    }

    pub(super) fn engaged(&self) -> bool {
        matches!(self.standing, Standing::Engaged { .. })
    }

    /// Newest step that its state is known to have; 0 for the seed's.
    pub(super) fn step(&self) -> u64 {
        match self.standing {
            Standing::Idle(Some(held)) => held.step,
            Standing::Engaged { applied, .. } => applied,
            _ => 0,
        }
    }
}
