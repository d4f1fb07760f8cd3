//! Random choices, replayed by their seed, that several tasks of one history can make.

use ballast_coordinator::simulation::Dice;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Dice that can be handed around.
#[derive(Clone)]
pub(crate) struct SharedDice(Arc<Mutex<Dice>>);

impl SharedDice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Dice::new(seed))))
    }

    /// A number below `bound`.
    pub(crate) fn below(&self, bound: usize) -> usize {
        self.0.lock().unwrap().below(bound)
    }

    pub(crate) fn one_in(&self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    /// Less than `milliseconds`.
    pub(crate) fn pause(&self, milliseconds: usize) -> Duration {
        Duration::from_millis(self.below(milliseconds) as u64)
    }

    pub(crate) fn seed(&self) -> u64 {
        self.0.lock().unwrap().seed()
    }

    pub(crate) fn with<T>(&self, throw: impl FnOnce(&mut Dice) -> T) -> T {
        throw(&mut self.0.lock().unwrap())
    }
}
