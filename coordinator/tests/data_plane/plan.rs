use ballast_coordinator::data::plan::{CostModel, Plan, PlanSettings, assign, permutation};
use proptest::prelude::*;
use std::collections::BTreeSet;

const COST: CostModel = CostModel { per_token: 3_538_944, per_pair: 576 };

fn settings(epochs: u64, global_batch: u32, micro_batch_tokens: u32) -> PlanSettings {
    PlanSettings { epochs, max_steps: None, global_batch, micro_batch_tokens, cost: COST }
}

/// Fixed numbers, made by `fixtures/data/make_permutations.py` from another implementation of ChaCha8.
#[test]
fn permutations_are_the_documented_ones() {
    let cases: serde_json::Value = serde_json::from_str(include_str!("../fixtures/data/permutations.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let number = |field: &str| case[field].as_u64().unwrap();
        let order = permutation(number("seed"), number("epoch"), number("n") as usize);
        let expected: Vec<u32> = serde_json::from_value(case["order"].clone()).unwrap();
        assert_eq!(order, expected, "seed {} epoch {}", number("seed"), number("epoch"));
    }
}

#[test]
fn the_last_batch_is_short_and_max_steps_stops() {
    let plan = Plan::new(1, &[10; 10], settings(2, 4, 100));
    assert_eq!((plan.steps_per_epoch(), plan.total_steps()), (3, 6));
    let sizes = |step: u64| plan.step(step).unwrap().micro_batches.concat().len();
    assert_eq!((1..=6).map(sizes).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2]);
    assert_eq!((plan.step(3).unwrap().epoch, plan.step(4).unwrap().epoch), (0, 1));
    assert!(plan.step(0).is_none() && plan.step(7).is_none());
    let stopped = Plan::new(1, &[10; 10], PlanSettings { max_steps: Some(4), ..settings(2, 4, 100) });
    assert_eq!(stopped.total_steps(), 4);
    assert!(stopped.step(5).is_none());
    assert_eq!(stopped.step(4), plan.step(4));
}

#[test]
fn no_samples_make_no_steps() {
    let plan = Plan::new(1, &[], settings(3, 4, 100));
    assert_eq!((plan.steps_per_epoch(), plan.total_steps(), plan.useful_workers()), (0, 0, 0));
    assert!(plan.step(1).is_none());
}

#[test]
fn useful_workers_are_the_micro_batches_of_the_largest_step() {
    // Four samples of 60 tokens: no two fit within 100.
    assert_eq!(Plan::new(1, &[60; 8], settings(1, 4, 100)).useful_workers(), 4);
    assert_eq!(Plan::new(1, &[50; 8], settings(1, 4, 100)).useful_workers(), 2);
}

#[test]
fn memory_is_planned_for_the_budget_and_for_no_more_than_there_is() {
    let largest = |lengths: &[u32], batch, budget| {
        let plan = Plan::new(1, lengths, settings(2, batch, budget));
        let tokens = |group: &Vec<u32>| group.iter().map(|&sample| u64::from(lengths[sample as usize])).sum::<u64>();
        let steps = (1..=plan.total_steps()).filter_map(|step| plan.step(step));
        let met = steps.flat_map(|step| step.micro_batches).map(|group| tokens(&group)).max().unwrap_or(0);
        (plan.largest_micro_batch_tokens(), met)
    };
    assert_eq!(largest(&[50; 8], 4, 100), (100, 100));
    // One sample over the budget; steps with fewer tokens than the budget; no samples.
    assert_eq!(largest(&[70, 20, 130, 50], 4, 100), (130, 130));
    assert_eq!(largest(&[25; 4], 2, 100), (50, 50));
    assert_eq!(largest(&[], 4, 100), (0, 0));
}

#[test]
fn costs_follow_the_architecture() {
    assert_eq!(COST.sample(100), 100 * 3_538_944 + 100 * 100 * 576);
    let plan = Plan::new(1, &[100, 100], settings(1, 2, 1000));
    assert_eq!(plan.costs(&plan.step(1).unwrap()), [2 * COST.sample(100)]);
}

/// Lengths like GSM8K's: micro-batches of a step differ little in cost.
#[test]
fn micro_batches_are_balanced() {
    let lengths: Vec<u32> = (0..2000_u64).map(|i| 90 + (i * i * 7919 % 241) as u32).collect();
    let plan = Plan::new(7, &lengths, settings(1, 32, 1024));
    let mut worst = 0.0_f64;
    let mut sum = 0.0;
    for step in 1..=plan.steps_per_epoch() {
        let costs = plan.costs(&plan.step(step).unwrap());
        let mean = costs.iter().sum::<u64>() as f64 / costs.len() as f64;
        let ratio = *costs.iter().max().unwrap() as f64 / mean;
        worst = worst.max(ratio);
        sum += ratio;
    }
    assert!(worst < 1.35 && sum / (plan.steps_per_epoch() as f64) < 1.1, "worst {worst}");
}

fn lengths() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![8 => 2..300_u32, 1 => 300..5000_u32], 0..120)
}

proptest! {
    #[test]
    fn every_sample_is_trained_once_an_epoch(
        lengths in lengths(), seed in any::<u64>(), batch in 1..40_u32, budget in 1..2000_u32, epochs in 1..4_u64,
    ) {
        let plan = Plan::new(seed, &lengths, settings(epochs, batch, budget));
        for epoch in 0..epochs {
            let mut seen = BTreeSet::new();
            for step in 1..=plan.steps_per_epoch() {
                let step = plan.step(epoch * plan.steps_per_epoch() + step).unwrap();
                prop_assert_eq!(step.epoch, epoch);
                for sample in step.micro_batches.concat() {
                    prop_assert!(seen.insert(sample), "sample {} twice", sample);
                }
            }
            prop_assert_eq!(seen.len(), lengths.len());
            prop_assert!(seen.last().is_none_or(|&last| (last as usize) < lengths.len()));
        }
    }

    #[test]
    fn the_budget_holds_and_micro_batches_are_few(
        lengths in lengths(), seed in any::<u64>(), batch in 1..40_u32, budget in 1..2000_u32,
    ) {
        let plan = Plan::new(seed, &lengths, settings(1, batch, budget));
        for step in 1..=plan.steps_per_epoch() {
            let step = plan.step(step).unwrap();
            let tokens: Vec<u32> =
                step.micro_batches.iter().map(|m| m.iter().map(|&s| lengths[s as usize]).sum()).collect();
            for (micro_batch, &tokens) in step.micro_batches.iter().zip(&tokens) {
                prop_assert!(!micro_batch.is_empty());
                prop_assert!(u64::from(tokens) <= plan.largest_micro_batch_tokens());
                prop_assert!(tokens <= budget || micro_batch.len() == 1, "{} tokens over {}", tokens, budget);
            }
            // Were there room to spare, fewer would have done: the packed ones number less than twice the fewest.
            let packed: Vec<u64> = tokens.iter().filter(|&&t| t <= budget).map(|&t| u64::from(t)).collect();
            let fewest = packed.iter().sum::<u64>().div_ceil(u64::from(budget)) as usize;
            prop_assert!(packed.len() <= 2 * fewest.max(1), "{} micro-batches where {} might do", packed.len(), fewest);
        }
    }

    #[test]
    fn a_plan_is_pure(lengths in lengths(), seed in any::<u64>(), batch in 1..40_u32, budget in 1..2000_u32) {
        let plan = Plan::new(seed, &lengths, settings(3, batch, budget));
        let forward: Vec<_> = (1..=plan.total_steps()).map(|s| plan.step(s)).collect();
        let again = Plan::new(seed, &lengths, settings(3, batch, budget));
        let mut backward: Vec<_> = (1..=again.total_steps()).rev().map(|s| again.step(s)).collect();
        backward.reverse();
        prop_assert_eq!(forward, backward);
    }

    /// Where the budget never binds, a micro-batch exceeds another by one sample at most.
    #[test]
    fn balance_is_bounded(lengths in prop::collection::vec(2..100_u32, 2..60), budget in 200..800_u32) {
        let plan = Plan::new(3, &lengths, settings(1, 60, budget));
        let step = plan.step(1).unwrap();
        let total: u32 = lengths.iter().sum();
        prop_assume!(step.micro_batches.len() as u32 == total.div_ceil(budget));
        let costs = plan.costs(&step);
        let tokens = |m: &Vec<u32>| m.iter().map(|&s| lengths[s as usize]).sum::<u32>();
        prop_assume!(step.micro_batches.iter().all(|m| tokens(m) + 100 <= budget));
        let largest = lengths.iter().map(|&n| COST.sample(n)).max().unwrap();
        prop_assert!(costs.iter().max().unwrap() - costs.iter().min().unwrap() <= largest);
    }

    #[test]
    fn assignment_covers_everything_once(costs in prop::collection::vec(0..1_000_000_u64, 0..60), world in 1..9_usize) {
        let ranks = assign(&costs, world);
        prop_assert_eq!(ranks.len(), world);
        prop_assert_eq!(&ranks, &assign(&costs, world));
        let mut all = ranks.concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..costs.len()).collect::<Vec<_>>());
        // Longest first: no rank exceeds the least loaded one by more than its own smallest piece.
        let load = |rank: &Vec<usize>| rank.iter().map(|&i| costs[i]).sum::<u64>();
        let least = ranks.iter().map(load).min().unwrap();
        for rank in &ranks {
            let smallest = rank.iter().map(|&i| costs[i]).min().unwrap_or(0);
            prop_assert!(load(rank) <= least + smallest);
        }
    }
}

/// Samples of more than half the budget each need a micro-batch of their own: the search must not try every number.
#[test]
fn large_batches_of_long_samples_are_planned() {
    let lengths: Vec<u32> = (0..40_000).map(|sample| 51 + sample % 50).collect();
    let plan = Plan::new(1, &lengths, settings(1, 40_000, 100));
    assert_eq!(plan.step(1).unwrap().micro_batches.len(), 40_000);
    // Three fit together at best, never by tokens alone: the bound is passed, and the search goes on.
    let lengths: Vec<u32> = (0..30_000).map(|sample| 26 + sample % 8).collect();
    let step = Plan::new(1, &lengths, settings(1, 30_000, 100)).step(1).unwrap();
    assert!((9_000..=10_100).contains(&step.micro_batches.len()), "{}", step.micro_batches.len());
}
