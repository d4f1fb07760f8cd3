//! What all machines of one history have seen, and what none of them may see.

use ballast_proto::v1::Generation;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Hash of the state after each step.
pub(crate) type Chain = BTreeMap<u64, [u8; 32]>;

/// Seen by all; clones share one memory.
#[derive(Clone, Default)]
pub(crate) struct Witness(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    chain: Chain,
    /// Who has which rank.
    ranks: BTreeMap<(Generation, usize), String>,
    /// Newest generation of each worker's process.
    newest: BTreeMap<String, Generation>,
    steps: u64,
    violations: Vec<String>,
}

impl Witness {
    /// Of a history that must lead to these states.
    pub(crate) fn of(chain: &Chain) -> Self {
        Self(Arc::new(Mutex::new(Seen { chain: chain.clone(), ..Seen::default() })))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker has applied a step.
    pub(crate) fn applied(&self, worker: &str, step: u64, state: [u8; 32]) {
        let mut seen = self.seen();
        seen.steps += 1;
        let known = *seen.chain.entry(step).or_insert(state);
        if known != state {
            seen.violations.push(format!("{worker} has another state after step {step} than was there before"));
        }
    }

    /// A worker has begun a generation.
    pub(crate) fn entered(&self, worker: &str, generation: Generation, rank: usize) {
        let mut seen = self.seen();
        if let Some(holder) = seen.ranks.insert((generation, rank), worker.to_owned())
            && holder != worker
        {
            seen.violations.push(format!("{worker} and {holder} are both rank {rank} of generation {generation}"));
        }
        if let Some(before) = seen.newest.insert(worker.to_owned(), generation)
            && before >= generation
        {
            seen.violations.push(format!("{worker} enters generation {generation} after {before}"));
        }
    }

    /// Something is wrong.
    pub(crate) fn accuse(&self, violation: String) {
        self.seen().violations.push(violation);
    }

    /// Steps that were applied, by any worker.
    pub(crate) fn steps(&self) -> u64 {
        self.seen().steps
    }

    /// Hash of the state after each step.
    pub(crate) fn chain(&self) -> Chain {
        self.seen().chain.clone()
    }

    /// The first thing that was wrong, here or in any panic since the last look.
    pub(crate) fn violation(&self) -> Option<String> {
        PANICS.take().or_else(|| self.seen().violations.first().cloned())
    }
}

thread_local! {
    /// The last panic of a task, which its runtime keeps to itself. A history has all its tasks on one thread.
    static PANICS: Cell<Option<String>> = const { Cell::new(None) };
}

/// Lets every panic count as a violation.
pub(crate) fn listen_for_panics() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        PANICS.set(Some(panic.to_string()));
    }));
}
