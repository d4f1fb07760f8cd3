//! The steps of the plan, each worked out once: every rank asks for its share of a step, and reports it.

use crate::{
    data::plan::{Plan, StepPlan, assign},
    membership::StepTotals,
};
use ballast_proto::v1::Sequence;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

/// Steps that are kept: those between the slowest rank and the newest step that is streamed, as a rule.
const KEPT: usize = 8;

/// The plan, with the steps that were asked for last.
pub(super) struct Steps {
    plan: Plan,
    steps: Recent<u64, Step>,
    /// Shares by step and world size.
    shares: Recent<(u64, usize), Shares>,
}

/// One step, for all ranks.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) plan: StepPlan,
    pub(super) totals: StepTotals,
}

/// Micro-batches of each rank.
pub(super) type Shares = Vec<Vec<usize>>;

impl Steps {
    pub(super) fn new(plan: Plan) -> Self {
        Self { plan, steps: Recent::default(), shares: Recent::default() }
    }

    /// A step of the run; `None` outside it.
    pub(super) fn step(&self, step: u64, samples: &[Sequence]) -> Option<Arc<Step>> {
        self.steps.of(step, || {
            let plan = self.plan.step(step)?;
            let totals = totals(&plan, samples);
            Some(Step { plan, totals })
        })
    }

    /// How its micro-batches are divided among the ranks.
    pub(super) fn shares(&self, step: u64, of: &Step, world_size: usize) -> Option<Arc<Shares>> {
        self.shares.of((step, world_size), || Some(assign(&self.plan.costs(&of.plan), world_size)))
    }
}

/// Token counts of a step, over all ranks.
fn totals(plan: &StepPlan, samples: &[Sequence]) -> StepTotals {
    let trained = plan.micro_batches.iter().flatten().filter_map(|sample| samples.get(*sample as usize));
    let micro_batches = u32::try_from(plan.micro_batches.len()).unwrap_or(u32::MAX);
    let zero = StepTotals { loss_tokens: 0, tokens: 0, micro_batches };
    trained.fold(zero, |sum, sample| StepTotals {
        loss_tokens: sum.loss_tokens + loss_tokens(sample),
        tokens: sum.tokens + sample.token_ids.len() as u64,
        ..sum
    })
}

fn loss_tokens(sample: &Sequence) -> u64 {
    sample.loss.iter().map(|range| u64::from(range.end.saturating_sub(range.start))).sum()
}

/// The newest few values that were made, by key.
struct Recent<K, V>(Mutex<VecDeque<(K, Arc<V>)>>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, V> Recent<K, V> {
    /// The value of a key. Who asks while it is being made waits for it: all ranks ask at once.
    fn of(&self, key: K, make: impl FnOnce() -> Option<V>) -> Option<Arc<V>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = kept.iter().find(|(of, _)| *of == key) {
            return Some(Arc::clone(value));
        }
        let value = Arc::new(make()?);
        kept.truncate(KEPT - 1);
        kept.push_front((key, Arc::clone(&value)));
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_value_is_made_once_while_it_is_among_the_newest() {
        let (recent, made) = (Recent::default(), Cell::new(0));
        let of = |key: usize| {
            let make = || {
                made.set(made.get() + 1);
                (key > 0).then_some(10 * key)
            };
            recent.of(key, make).map(|value| *value)
        };
        assert_eq!((of(1), of(1), made.get()), (Some(10), Some(10), 1));
        assert_eq!((of(0), of(0), made.get()), (None, None, 3), "what is not there is looked for again");
        (2..=KEPT).for_each(|key| assert_eq!(of(key), Some(10 * key)));
        assert_eq!((of(1), made.get()), (Some(10), KEPT + 2));
        of(KEPT + 1);
        assert_eq!((of(1), made.get()), (Some(10), KEPT + 4), "the oldest had to go");
    }
}
