//! The order of training: which samples make up each step, and how a step is cut into micro-batches.
//!
//! Everything here is a pure function of its arguments. Nothing depends on how many workers there are: the
//! micro-batch is the unit of arithmetic, and only [`assign`] knows of ranks.

use ballast_basemodel::{Architecture, Projection};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::{Arc, Mutex, PoisonError};

/// What of the run file shapes the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanSettings {
    /// Times every sample is trained.
    pub epochs: u64,
    /// Stop after this many steps, even within an epoch.
    pub max_steps: Option<u64>,
    /// Samples of one step.
    pub global_batch: u32,
    /// Tokens of one micro-batch, at most; a longer sample gets one of its own.
    pub micro_batch_tokens: u32,
    /// Estimated cost of a sample.
    pub cost: CostModel,
}

/// Estimated cost of training a sample of `n` tokens: `per_token * n + per_pair * n^2`, in any unit.
///
/// Integers, so that the plan is the same on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostModel {
    /// Of the linear layers, for each token.
    pub per_token: u64,
    /// Of attention, for each pair of tokens.
    pub per_pair: u64,
}

impl CostModel {
    /// The proportions of a decoder: a token passes every weight of its layers once (one multiply-add each), a pair of
    /// tokens costs each head `head_dim` multiply-adds for its score and `head_dim` for its value, and the causal mask
    /// leaves half of the pairs.
    #[must_use]
    pub fn of(architecture: &Architecture) -> Self {
        let linear: usize = Projection::ALL
            .into_iter()
            .map(|p| {
                let (out, input) = architecture.projection_shape(p);
                out * input
            })
            .sum();
        Self { per_token: linear as u64, per_pair: (architecture.heads * architecture.head_dim) as u64 }
    }

    /// Cost of a sample of `tokens` tokens.
    #[must_use]
    pub fn sample(self, tokens: u32) -> u64 {
        let n = u64::from(tokens);
        self.per_token.saturating_mul(n).saturating_add(self.per_pair.saturating_mul(n * n))
    }
}

/// The plan of a whole run.
#[derive(Debug)]
pub struct Plan {
    seed: u64,
    lengths: Vec<u32>,
    settings: PlanSettings,
    /// The permutation used last: steps are asked for in order, and an epoch's order takes time to make.
    order: Mutex<Option<(u64, Arc<[u32]>)>>,
}

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// Epoch the step belongs to, counted from 0.
    pub epoch: u64,
    /// Samples of each micro-batch, as indices into the prepared set.
    pub micro_batches: Vec<Vec<u32>>,
}

impl Plan {
    /// The plan for samples of these lengths. A batch or budget of 0 counts as 1.
    #[must_use]
    pub fn new(seed: u64, lengths: &[u32], settings: PlanSettings) -> Self {
        let settings = PlanSettings {
            global_batch: settings.global_batch.max(1),
            micro_batch_tokens: settings.micro_batch_tokens.max(1),
            ..settings
        };
        Self { seed, lengths: lengths.to_vec(), settings, order: Mutex::new(None) }
    }

    /// Steps of one epoch; the last may be short.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.lengths.len().div_ceil(self.settings.global_batch as usize) as u64
    }

    /// Steps of the whole run.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        let all = self.steps_per_epoch().saturating_mul(self.settings.epochs);
        self.settings.max_steps.map_or(all, |most| all.min(most))
    }

    /// The step of this 1-based number; `None` outside the run.
    #[must_use]
    pub fn step(&self, step: u64) -> Option<StepPlan> {
        if step == 0 || step > self.total_steps() {
            return None;
        }
        let (epoch, within) = ((step - 1) / self.steps_per_epoch(), (step - 1) % self.steps_per_epoch());
        let order = self.order(epoch);
        let batch = order.chunks(self.settings.global_batch as usize).nth(usize::try_from(within).ok()?)?;
        let tokens: Vec<u32> = batch.iter().map(|&sample| self.tokens(sample)).collect();
        let micro_batches = pack(&tokens, self.settings.micro_batch_tokens, self.settings.cost)
            .into_iter()
            .map(|group| group.into_iter().map(|position| batch[position]).collect())
            .collect();
        Some(StepPlan { epoch, micro_batches })
    }

    /// Estimated cost of each micro-batch of a step, for [`assign`].
    #[must_use]
    pub fn costs(&self, step: &StepPlan) -> Vec<u64> {
        let cost = |group: &Vec<u32>| {
            group.iter().fold(0_u64, |sum, &s| sum.saturating_add(self.settings.cost.sample(self.tokens(s))))
        };
        step.micro_batches.iter().map(cost).collect()
    }

    /// Micro-batches of the largest step of the first epoch: with more workers than this, some have nothing to do.
    #[must_use]
    pub fn useful_workers(&self) -> usize {
        (1..=self.total_steps().min(self.steps_per_epoch()))
            .filter_map(|step| self.step(step))
            .map(|step| step.micro_batches.len())
            .max()
            .unwrap_or(0)
    }

    /// Tokens that no micro-batch of the run exceeds: the budget, or the longest sample where that is more; and never
    /// more than the longest samples of one step have together. What memory is planned for.
    #[must_use]
    pub fn largest_micro_batch_tokens(&self) -> u64 {
        let mut longest_first = self.lengths.clone();
        longest_first.sort_unstable_by_key(|&tokens| Reverse(tokens));
        let longest = longest_first.first().copied().map_or(0, u64::from);
        let step: u64 = longest_first.iter().take(self.settings.global_batch as usize).copied().map(u64::from).sum();
        longest.max(step.min(self.settings.micro_batch_tokens.into()))
    }

    fn tokens(&self, sample: u32) -> u32 {
        self.lengths.get(sample as usize).copied().unwrap_or(0)
    }

    fn order(&self, epoch: u64) -> Arc<[u32]> {
        let mut kept = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((of, order)) if *of == epoch => Arc::clone(order),
            _ => {
                let order: Arc<[u32]> = permutation(self.seed, epoch, self.lengths.len()).into();
                *kept = Some((epoch, Arc::clone(&order)));
                order
            }
        }
    }
}

/// The order of `n` samples in an epoch: Fisher and Yates' shuffle, drawing from ChaCha8.
///
/// The key is seed, epoch and `n` themselves, so that no two of them share a stream. At most 2^32 samples.
#[must_use]
pub fn permutation(seed: u64, epoch: u64, n: usize) -> Vec<u32> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&(n as u64).to_le_bytes());
    key[24..].copy_from_slice(b"bal.plan");
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut order: Vec<u32> = (0..u32::try_from(n).unwrap_or(u32::MAX)).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
    order
}

/// A uniform number below `bound`, which is not 0 (Lemire, 1805.10941, algorithm 5): no modulo bias.
fn below(rng: &mut impl RngCore, bound: u64) -> u64 {
    let reject_below = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= reject_below {
            return (product >> 64) as u64;
        }
    }
}

/// Cuts one step into micro-batches of at most `budget` tokens, balanced in cost; returns positions in `tokens`.
///
/// A sample over the budget gets a micro-batch of its own. The others go, costliest first, each into the cheapest
/// micro-batch with room for it, of as few micro-batches as that succeeds with.
fn pack(tokens: &[u32], budget: u32, cost: CostModel) -> Vec<Vec<usize>> {
    let (mut fitting, oversized): (Vec<usize>, Vec<usize>) = (0..tokens.len()).partition(|&i| tokens[i] <= budget);
    fitting.sort_by_key(|&i| (Reverse(tokens[i]), i));
    let mut groups = fewest_groups(fewest(&fitting, tokens, budget), fitting.len(), |count| {
        fill(&fitting, tokens, budget, cost, count)
    });
    groups.extend(oversized.into_iter().map(|i| vec![i]));
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups.sort_unstable();
    groups
}

/// A lower bound of the micro-batches: by their tokens in all, and because no two samples of over half the budget share
/// one.
fn fewest(samples: &[usize], tokens: &[u32], budget: u32) -> usize {
    let total: u64 = samples.iter().map(|&i| u64::from(tokens[i])).sum();
    let large = samples.iter().filter(|&&i| tokens[i] > budget / 2).count();
    large.max(total.div_ceil(u64::from(budget)) as usize).max(usize::from(!samples.is_empty()))
}

/// What `fill` gives for the smallest count that it succeeds with: strides that double from `fewest` up, then bisection.
/// With as many micro-batches as samples each has one of its own, so the search ends.
fn fewest_groups<T>(fewest: usize, samples: usize, fill: impl Fn(usize) -> Option<Vec<T>>) -> Vec<T> {
    let (mut failed, mut stride) = (fewest, 1);
    if let Some(groups) = fill(fewest) {
        return groups;
    }
    let mut found = loop {
        let count = (fewest + stride).min(samples);
        match fill(count) {
            Some(groups) => break (count, groups),
            None if count == samples => return Vec::new(),
            None => (failed, stride) = (count, 2 * stride),
        }
    };
    while found.0 - failed > 1 {
        let middle = failed.midpoint(found.0);
        match fill(middle) {
            Some(groups) => found = (middle, groups),
            None => failed = middle,
        }
    }
    found.1
}

/// Places samples, costliest first, into `count` micro-batches; `None` when one finds no room.
fn fill(samples: &[usize], tokens: &[u32], budget: u32, cost: CostModel, count: usize) -> Option<Vec<Vec<usize>>> {
    let mut members = vec![Vec::new(); count];
    // Cost, tokens and number of each, cheapest first: that one nearly always has room.
    let mut cheapest_first: BTreeSet<(u64, u32, usize)> = (0..count).map(|group| (0, 0, group)).collect();
    for &sample in samples {
        let group = *cheapest_first.iter().find(|(_, used, _)| tokens[sample] <= budget - used)?;
        cheapest_first.remove(&group);
        let (group_cost, used, number) = group;
        let sum = group_cost.saturating_add(cost.sample(tokens[sample]));
        cheapest_first.insert((sum, used + tokens[sample], number));
        members[number].push(sample);
    }
    Some(members)
}

/// Divides micro-batches of these costs among `world_size` ranks: longest first, each to the rank with the least so
/// far (Graham, 1969: at most 4/3 of the best possible). Ties go to the lower rank. Every rank's list is ascending.
#[must_use]
pub fn assign(costs: &[u64], world_size: usize) -> Vec<Vec<usize>> {
    let mut ranks = vec![Vec::new(); world_size];
    let mut longest_first: Vec<usize> = (0..costs.len()).collect();
    longest_first.sort_by_key(|&i| (Reverse(costs[i]), i));
    // Load, micro-batches and number of each rank, the least loaded on top.
    let mut loads: BinaryHeap<Reverse<(u64, usize, usize)>> =
        (0..world_size).map(|rank| Reverse((0, 0, rank))).collect();
    for index in longest_first {
        let Some(mut least) = loads.peek_mut() else { break };
        let Reverse((load, count, rank)) = *least;
        *least = Reverse((load.saturating_add(costs[index]), count + 1, rank));
        ranks[rank].push(index);
    }
    ranks.iter_mut().for_each(|list| list.sort_unstable());
    ranks
}
