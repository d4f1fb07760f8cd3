//! Activation checkpointing: less memory, the same bits.

use super::support::{ALL_LINEAR, decoder, run_spec, sample, shard, trainer};
use ballast_basemodel::{Architecture, ModelSource};
use ballast_kernels::cpu::CpuBackend;
use ballast_proto::v1::{Lora, RunSpec, StepShard};
use ballast_worker::collective::Solo;
use ballast_worker::model::Decoder;
use ballast_worker::trainer::Trainer;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A run of these targets, with dropout.
fn run(targets: &[&str], activation_checkpointing: bool) -> RunSpec {
    let run = run_spec();
    let target_modules = targets.iter().map(ToString::to_string).collect();
    let lora = run.lora.clone().map(|lora| Lora { dropout: 0.3, target_modules, ..lora });
    RunSpec { lora, activation_checkpointing, ..run }
}

/// A packed micro-batch and one of a single sample, in each of three steps.
fn steps(vocab_size: usize) -> Vec<StepShard> {
    let sample = |number: u64| sample(number, 6 + (number % 7) as usize, 2, vocab_size);
    let step = |step: u64| shard(step, &[vec![sample(10 * step), sample(10 * step + 1)], vec![sample(10 * step + 2)]]);
    (1..=3).map(step).collect()
}

/// Hash of the state and bits of the mean gradient after each step.
fn trained(decoder: &Arc<Decoder<CpuBackend>>, run: &RunSpec) -> Vec<([u8; 32], Vec<u32>)> {
    let mut trainer = trainer(decoder, run);
    let steps = steps(decoder.architecture().vocab_size);
    let step = |shard| {
        let outcome = trainer.step(shard, &mut Solo).unwrap();
        let gradient = trainer.last_gradient().unwrap().iter().map(|value| value.to_bits()).collect();
        (outcome.state_sha256, gradient)
    };
    steps.iter().map(step).collect()
}

fn same_bits(what: &str, decoder: &Arc<Decoder<CpuBackend>>, targets: &[&str]) {
    let kept = trained(decoder, &run(targets, false));
    assert!(kept.iter().all(|(_, gradient)| gradient.iter().any(|&bits| bits << 1 != 0)), "{what}: no gradient");
    assert!(kept == trained(decoder, &run(targets, true)), "{what}, {targets:?}: other bits");
}

/// Models of all families that the fixtures have.
fn models() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let variants = std::fs::read_dir(fixtures.join("variants")).unwrap().map(|entry| entry.unwrap().path());
    variants.chain([fixtures.join("peft-tiny")]).map(|fixture| fixture.join("model")).collect()
}

#[test]
fn every_family_trains_to_the_same_bits() {
    let models = models();
    assert!(models.len() >= 12, "{models:?}");
    for path in models {
        let model = ModelSource::parse(path.to_str().unwrap(), None).unwrap().fetch().unwrap();
        let decoder = Arc::new(Decoder::load(&Arc::new(CpuBackend::new(1).unwrap()), &model).unwrap());
        same_bits(&path.display().to_string(), &decoder, &ALL_LINEAR);
    }
}

#[test]
fn so_does_every_lowest_adapter() {
    let decoder = decoder(&Architecture::tiny(), 2);
    for target in ALL_LINEAR {
        same_bits("tiny", &decoder, &[target]);
    }
}

#[test]
fn a_run_may_go_on_with_or_without() {
    let (decoder, steps) = (decoder(&Architecture::tiny(), 1), steps(61));
    let trainer = |checkpointing| trainer(&decoder, &run(&ALL_LINEAR, checkpointing));
    let train = |trainer: &mut Trainer<CpuBackend>, steps: &[StepShard]| {
        for step in steps {
            trainer.step(step, &mut Solo).unwrap();
        }
        trainer.export_state().unwrap()
    };
    let whole = train(&mut trainer(false), &steps);
    for (before, after) in [(false, true), (true, false)] {
        let stopped = train(&mut trainer(before), &steps[..1]);
        let files: Vec<(String, Bytes)> = stopped.files.into_iter().map(|(name, file)| (name, file.into())).collect();
        let mut resumed = trainer(after);
        resumed.import_state(1, &files).unwrap();
        assert_eq!(train(&mut resumed, &steps[1..]).files, whole.files, "{before}, then {after}");
    }
}

#[test]
fn it_takes_less_memory_and_its_work_counts_as_progress() {
    let decoder = decoder(&Architecture { layers: 12, ..Architecture::tiny() }, 1);
    let step = &shard(1, &[vec![sample(1, 60, 2, 61)]]);
    let measured = |checkpointing| {
        let mut trainer = trainer(&decoder, &run(&ALL_LINEAR, checkpointing));
        decoder.backend().reset_peak_memory();
        let before = (decoder.backend().memory().in_use, trainer.progress().heartbeat().progress);
        trainer.step(step, &mut Solo).unwrap();
        let after = trainer.progress().heartbeat().progress;
        (decoder.backend().memory().peak - before.0, after - before.1)
    };
    let (kept, again) = (measured(false), measured(true));
    assert!(2 * again.0 < kept.0, "{} bytes with checkpointing, {} without", again.0, kept.0);
    assert_eq!(again.1, kept.1 + 12, "every layer that is computed again is progress");
}
