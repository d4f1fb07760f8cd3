//! Steps whose loss or gradient is not finite, and that are skipped.

use super::support::{ThreadRank, part, run_spec, sample, shard, trainer, uniform};
use ballast_basemodel::Architecture;
use ballast_kernels::cpu::CpuBackend;
use ballast_proto::v1::schedule::Kind;
use ballast_proto::v1::{NonFinite, Reduction, RunSpec, Schedule, StepShard};
use ballast_worker::collective::Solo;
use ballast_worker::model::Decoder;
use ballast_worker::trainer::StepOutcome;
use std::sync::Arc;

/// A run that skips, at a constant learning rate: what it trains depends on no step's number.
fn skipping() -> RunSpec {
    let schedule = Some(Schedule { kind: Kind::Constant as i32, warmup_steps: 0 });
    RunSpec { skip_non_finite: true, schedule, ..run_spec() }
}

/// A decoder for which token 60 has no embedding that is a number.
pub(crate) fn poisonous() -> Arc<Decoder<CpuBackend>> {
    let weights = |name: &str, shape: &[usize]| {
        let mut values = uniform(name, shape.iter().product(), 0.5);
        if name == "model.embed_tokens.weight" {
            values[60 * Architecture::tiny().hidden_size] = f32::NAN;
        }
        Ok(values)
    };
    let backend = Arc::new(CpuBackend::new(1).unwrap());
    Arc::new(Decoder::from_weights(&backend, &Architecture::tiny(), &weights).unwrap())
}

/// Trains `steps` by so many ranks, of which the last one may have nothing to do; what each of them came to.
fn train_by(world_size: u32, run: &RunSpec, steps: &[StepShard]) -> Vec<Vec<StepOutcome>> {
    let ranks = ThreadRank::world(world_size as usize).into_iter().zip(0u32..);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ranks
            .map(|(mut collective, rank)| {
                scope.spawn(move || {
                    let mut trainer = trainer(&poisonous(), run);
                    let mine = |step| part(step, |index| index % world_size == rank);
                    steps.iter().map(|step| trainer.step(&mine(step), &mut collective).unwrap()).collect()
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn a_skipped_step_changes_nothing_and_names_the_same_micro_batches_on_every_rank() {
    let run = skipping();
    let clean = |n| vec![sample(n, 9, 2, 60)];
    let poisoned = |n| {
        let mut poisoned = sample(n, 9, 2, 60);
        poisoned.token_ids[3] = 60;
        vec![poisoned, sample(n + 1, 5, 2, 60)]
    };
    let steps = [
        shard(1, &[clean(1), clean(2), clean(3)]),
        shard(2, &[clean(4), poisoned(5), clean(7), poisoned(8)]),
        shard(3, &[clean(10), clean(11)]),
    ];
    let alone = train_by(1, &run, &steps).remove(0);
    let named: Vec<_> = alone[1].not_finite.iter().map(|m| (m.micro_batch, m.loss, m.gradient)).collect();
    assert_eq!(named, [(1, true, true), (3, true, true)]);
    assert_eq!(alone[1].state_sha256, alone[0].state_sha256, "the state is that of the step before");
    assert_eq!((alone[1].grad_norm, alone[1].loss_tokens), (0.0, 14), "the tokens of two sound micro-batches");
    assert!(alone[1].loss.is_finite() && alone[1].loss > 0.0);
    assert!(alone[2].not_finite.is_empty() && alone[2].grad_norm > 0.0);
    for world_size in 2..=3 {
        for outcomes in train_by(world_size, &run, &steps) {
            for (here, there) in outcomes.iter().zip(&alone) {
                assert_eq!((here.state_sha256, here.loss), (there.state_sha256, there.loss));
                assert_eq!(here.not_finite, there.not_finite);
            }
        }
    }
    // The optimizer has not counted it: at a constant learning rate, the state is that of a run that never met the step.
    let third_as_second = StepShard { step: 2, ..steps[2].clone() };
    let without = train_by(1, &run, &[steps[0].clone(), third_as_second]).remove(0);
    assert_eq!(without[1].state_sha256, alone[2].state_sha256);
}

#[test]
fn a_skipped_step_survives_a_checkpoint() {
    let run = skipping();
    let mut poisoned = sample(4, 9, 2, 60);
    poisoned.token_ids[3] = 60;
    let steps =
        [shard(1, &[vec![sample(1, 9, 2, 60)]]), shard(2, &[vec![poisoned]]), shard(3, &[vec![sample(7, 9, 2, 60)]])];
    let mut whole = trainer(&poisonous(), &run);
    let outcomes = steps.each_ref().map(|step| whole.step(step, &mut Solo).unwrap());
    assert_eq!((outcomes[1].loss, outcomes[1].loss_tokens), (0.0, 0), "no loss of it is finite");

    let mut before = trainer(&poisonous(), &run);
    steps[..2].iter().for_each(|step| drop(before.step(step, &mut Solo).unwrap()));
    let exported = before.export_state().unwrap();
    assert_eq!((exported.step, exported.state_sha256), (2, outcomes[0].state_sha256));
    let files: Vec<_> = exported.files.into_iter().map(|(name, data)| (name, data.into())).collect();
    let mut resumed = trainer(&poisonous(), &run);
    resumed.import_state(2, &files).unwrap();
    assert_eq!(resumed.step(&steps[2], &mut Solo).unwrap().state_sha256, outcomes[2].state_sha256);
}

/// Sums of floats tell only that something in them is not finite (`e2e/tests/skipping.rs`); the loss of each micro-batch is known all
/// the same.
#[test]
fn beside_fast_sums_a_loss_that_is_not_finite_names_its_micro_batch() {
    let run = RunSpec { reduction: Reduction::Fast as i32, ..skipping() };
    let mut poisoned = sample(4, 9, 2, 60);
    poisoned.token_ids[3] = 60;
    let steps = [shard(1, &[vec![sample(1, 9, 2, 60)], vec![poisoned]])];
    let outcome = train_by(2, &run, &steps).remove(0).remove(0);
    assert_eq!(outcome.not_finite, [NonFinite { micro_batch: 1, loss: true, gradient: false }]);
}
