//! The same bits, however the work is divided.

use super::skipping::poisonous;
use super::support::{ThreadRank, decoder, part, run_spec, sample, shard, trainer};
use ballast_basemodel::Architecture;
use ballast_kernels::cpu::CpuBackend;
use ballast_proto::v1::{Lora, Reduction, RunSpec, Sequence, StepShard};
use ballast_worker::WorkerError;
use ballast_worker::collective::Solo;
use ballast_worker::trainer::{StepOutcome, Trainer};

const STEPS: u64 = 3;

/// Nine micro-batches of one to three samples, in each of three steps.
fn steps() -> Vec<StepShard> {
    let micro_batch = |step: u64, index: u64| -> Vec<Sequence> {
        let sample = |n: u64| {
            let number = step * 100 + index * 10 + n;
            sample(number, 5 + (number % 11) as usize, 1 + (number % 4) as usize, Architecture::tiny().vocab_size)
        };
        (0..=index % 3).map(sample).collect()
    };
    let step = |step| shard(step, &(0..9).map(|index| micro_batch(step, index)).collect::<Vec<_>>());
    (1..=STEPS).map(step).collect()
}

fn run_with_dropout(dropout: f64) -> RunSpec {
    let run = run_spec();
    RunSpec { lora: run.lora.clone().map(|lora| Lora { dropout, ..lora }), ..run }
}

/// Trains all steps on `world_size` ranks of `threads` threads; `owner` says which rank has which micro-batch.
fn train(run: &RunSpec, world_size: usize, threads: usize, owner: fn(u32, u32) -> u32) -> Vec<StepOutcome> {
    let steps = steps();
    let rank = |mut collective: ThreadRank, rank: u32| {
        let decoder = decoder(&Architecture::tiny(), threads);
        let mut trainer = trainer(&decoder, run);
        let step = |whole: &StepShard| {
            let own = part(whole, |index| owner(index, world_size as u32) == rank);
            trainer.step(&own, &mut collective).unwrap()
        };
        steps.iter().map(step).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let world = ThreadRank::world(world_size).into_iter().zip(0u32..);
        let ranks: Vec<_> = world.map(|(collective, number)| scope.spawn(move || rank(collective, number))).collect();
        let mut outcomes: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        for other in &outcomes[1..] {
            assert_eq!(results(&outcomes[0]), results(other), "the ranks disagree");
        }
        outcomes.swap_remove(0)
    })
}

/// What must be equal.
fn results(outcomes: &[StepOutcome]) -> Vec<([u8; 32], f64, f64)> {
    outcomes.iter().map(|o| (o.state_sha256, o.loss, o.grad_norm)).collect()
}

#[test]
fn any_number_of_ranks_and_threads() {
    for dropout in [0.0, 0.1] {
        let run = run_with_dropout(dropout);
        let alone = results(&train(&run, 1, 1, |_, _| 0));
        let round_robin = |index, world_size| index % world_size;
        for (world_size, threads) in [(1, 2), (1, 3), (2, 1), (3, 1), (3, 2)] {
            let divided = results(&train(&run, world_size, threads, round_robin));
            assert_eq!(alone, divided, "{world_size} ranks of {threads} threads, dropout {dropout}");
        }
        // Rank 2 has nothing to train and still takes part.
        assert_eq!(alone, results(&train(&run, 3, 1, |index, _| u32::from(index == 4))));
    }
}

#[test]
fn dropout_changes_the_result() {
    let without = results(&train(&run_with_dropout(0.0), 1, 1, |_, _| 0));
    assert_ne!(without, results(&train(&run_with_dropout(0.1), 1, 1, |_, _| 0)));
}

#[test]
fn any_order_of_micro_batches() {
    let (decoder, run) = (decoder(&Architecture::tiny(), 1), run_with_dropout(0.1));
    let train = |reorder: fn(&mut StepShard)| {
        let mut trainer = trainer(&decoder, &run);
        let mut steps = steps();
        steps.iter_mut().for_each(reorder);
        steps.iter().map(|step| trainer.step(step, &mut Solo).unwrap().state_sha256).collect::<Vec<_>>()
    };
    let forwards = train(|_| ());
    assert_eq!(forwards, train(|step| step.micro_batches.reverse()));
    assert_eq!(forwards, train(|step| step.micro_batches.rotate_left(4)));
}

/// A scaling so large that the first step's gradients exceed what the initial exponents hold.
fn steep_run() -> RunSpec {
    let run = run_spec();
    RunSpec { lora: run.lora.clone().map(|lora| Lora { scaling: 1e12, ..lora }), ..run }
}

#[test]
fn an_overflowing_step_is_recomputed_alike_by_any_division() {
    let step = shard(1, &(0..4).map(|n| vec![sample(n, 9, 2, 61)]).collect::<Vec<_>>());
    let mut outcomes = Vec::new();
    for owner in [|_: u32| 0, |index| index % 2, |index| u32::from(index == 3)] {
        let world = ThreadRank::world(2).into_iter().zip(0u32..);
        let step = &step;
        std::thread::scope(|scope| {
            let ranks: Vec<_> = world
                .map(|(mut collective, rank)| {
                    scope.spawn(move || {
                        let mut trainer = trainer(&decoder(&Architecture::tiny(), 1), &steep_run());
                        trainer.step(&part(step, |index| owner(index) == rank), &mut collective).unwrap()
                    })
                })
                .collect();
            outcomes.extend(ranks.into_iter().map(|rank| rank.join().unwrap()));
        });
    }
    for outcome in &outcomes {
        assert_eq!(outcome.recomputed, 1);
        assert_eq!((outcome.state_sha256, outcome.loss), (outcomes[0].state_sha256, outcomes[0].loss));
    }
}

#[test]
fn a_gradient_that_is_not_finite_names_its_samples_and_changes_nothing() {
    let mut trainer = trainer(&poisonous(), &run_spec());
    let before = trainer.export_state().unwrap();
    let mut poisoned = sample(8, 9, 2, 61);
    poisoned.token_ids[3] = 60;
    let clean = |n| sample(n, 9, 2, 60);
    let step = shard(1, &[vec![clean(1)], vec![clean(2), poisoned], vec![clean(3)]]);
    let error = trainer.step(&step, &mut Solo).unwrap_err();
    assert!(matches!(&error, WorkerError::NonFinite { step: 1, .. }), "{error}");
    assert!(error.to_string().contains("micro-batch 1 (samples 2, 8)"), "{error}");
    assert_eq!(before.state_sha256, trainer.export_state().unwrap().state_sha256);
    let healthy = shard(1, &[vec![clean(1)], vec![clean(3)]]);
    assert!(trainer.step(&healthy, &mut Solo).is_ok());
}

#[test]
fn shards_that_are_not_the_next_step_are_refused() {
    let mut trainer = trainer(&decoder(&Architecture::tiny(), 1), &run_spec());
    let good = shard(1, &[vec![sample(1, 9, 2, 61)]]);
    let refused =
        |trainer: &mut Trainer<CpuBackend>, shard: StepShard| trainer.step(&shard, &mut Solo).unwrap_err().to_string();
    assert!(refused(&mut trainer, StepShard { step: 2, ..good.clone() }).contains("next step is 1"));
    assert!(refused(&mut trainer, StepShard { step_micro_batches: 0, ..good.clone() }).contains("micro-batch 0 of 0"));
    assert!(refused(&mut trainer, StepShard { step_loss_tokens: 0, ..good.clone() }).contains("bears loss"));
    assert!(refused(&mut trainer, StepShard { step_loss_tokens: 8, ..good.clone() }).contains("7 loss tokens"));
    let mut beyond = good.clone();
    beyond.micro_batches[0].sequences[0].token_ids[0] = 61;
    assert!(refused(&mut trainer, beyond).contains("sample 1: token id 61"));
    assert_eq!(trainer.applied_step(), 0);
    assert!(trainer.step(&good, &mut Solo).is_ok());
}

/// Sums of f32 agree among the ranks of one run, and come near the exact ones; that they are no more than that is why
/// exact ones are the default.
#[test]
fn fast_sums_are_the_same_on_all_ranks_and_near_the_exact_ones() {
    let exact = train(&run_with_dropout(0.1), 1, 1, |_, _| 0);
    // Sums that travel as bf16 lose what a rounding of 2^-9 loses; less than that would mean that they did not.
    for (reduction, losses, norms) in [(Reduction::Fast, 1e-5, 1e-4), (Reduction::FastBf16, 2e-3, 4e-3)] {
        let fast = RunSpec { reduction: reduction as i32, ..run_with_dropout(0.1) };
        for world_size in 1..=3 {
            let outcomes = train(&fast, world_size, 1, |index, world_size| index % world_size);
            let mut apart: f64 = 0.0;
            for (fast, exact) in outcomes.iter().zip(&exact) {
                let off = |a: f64, b: f64| (a / b - 1.0).abs();
                assert!(off(fast.loss, exact.loss) <= losses, "{reduction:?} {fast:?} {exact:?}");
                assert!(off(fast.grad_norm, exact.grad_norm) <= norms, "{reduction:?} {fast:?} {exact:?}");
                apart = apart.max(off(fast.grad_norm, exact.grad_norm));
            }
            assert_eq!(apart > 1e-6, reduction == Reduction::FastBf16, "{reduction:?}: {apart:e}");
        }
    }
}
