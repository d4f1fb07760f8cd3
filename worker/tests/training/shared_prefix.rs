//! What all sequences of a micro-batch begin with is computed once, and changes nothing but roundings.

use super::memory::{OF_CPU, architectures, compare, run};
use super::support::{ALL_LINEAR, decoder, run_spec, sample, sequence, shard, trainer};
use ballast_basemodel::Architecture;
use ballast_kernels::Storage;
use ballast_kernels::cpu::{CpuBackend, CpuFootprint};
use ballast_proto::v1::{RunSpec, Sequence};
use ballast_worker::collective::Solo;
use ballast_worker::trainer::StepOutcome;

const PREFIX: usize = 12;

/// Sequences that begin alike for `PREFIX` tokens; all after the third of their own bears loss.
fn sequences(vocab_size: usize) -> Vec<Sequence> {
    let prefix = sample(99, PREFIX, 0, vocab_size).token_ids;
    let with_prefix = |number: u64| {
        let own = sample(number, 5 + 7 * number as usize, 0, vocab_size).token_ids;
        sequence(number, [&prefix[..], &own].concat(), PREFIX + 3)
    };
    (1..=4).map(with_prefix).collect()
}

/// Outcome and mean gradient of one step of these micro-batches.
fn step(architecture: &Architecture, run: &RunSpec, micro_batches: &[Vec<Sequence>]) -> (StepOutcome, Vec<f32>) {
    let decoder = decoder(architecture, 2);
    let mut trainer = trainer(&decoder, run);
    let warmed = trainer.step(&shard(1, &[vec![sample(7, 9, 2, architecture.vocab_size)]]), &mut Solo);
    // From B = 0 no gradient reaches A.
    assert!(warmed.is_ok());
    let outcome = trainer.step(&shard(2, micro_batches), &mut Solo).unwrap();
    (outcome, trainer.last_gradient().unwrap())
}

#[test]
fn loss_and_gradient_are_those_of_the_sequences_by_themselves() {
    let wide = Architecture { max_positions: 64, ..Architecture::tiny() };
    for (architecture, activation_checkpointing) in
        [(wide.clone(), false), (wide.clone(), true), (Architecture { qk_norm: true, ..wide }, false)]
    {
        let run = RunSpec { activation_checkpointing, ..run_spec() };
        let all = sequences(architecture.vocab_size);
        let alone: Vec<Vec<Sequence>> = all.iter().map(|sequence| vec![sequence.clone()]).collect();
        let ((together, gradient), (apart, want)) =
            (step(&architecture, &run, &[all]), step(&architecture, &run, &alone));
        assert_eq!((together.tokens, together.rank_tokens), (apart.tokens, apart.rank_tokens));
        assert!((together.loss / apart.loss - 1.0).abs() < 1e-6, "{} {}", together.loss, apart.loss);
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let distance = square(&mut gradient.iter().zip(&want).map(|(a, b)| a - b)) / square(&mut want.iter().copied());
        assert!(distance.sqrt() < 1e-5, "{}", distance.sqrt());
    }
}

#[test]
fn it_takes_less_memory_and_never_more_than_is_planned() {
    let architecture = Architecture { max_positions: 64, ..architectures()[0].clone() };
    let taken = |dropout: f64| {
        let (run, footprint) = (run(&ALL_LINEAR, dropout, false), CpuFootprint { threads: 2, weights: Storage::F32 });
        let sequences = sequences(architecture.vocab_size);
        let backend = CpuBackend::new(2).unwrap();
        let (estimate, measured) = compare(backend, footprint, OF_CPU, &architecture, &run, &sequences);
        assert!(measured.passing <= estimate.kept + estimate.transient, "{estimate}: {} taken", measured.passing);
        measured.passing as f64
    };
    // Dropout masks differ from sequence to sequence, so then nothing is shared.
    let (shared, apart) = (taken(0.0), taken(0.2));
    let rows = |prefixes: usize| (1..=4).map(|n| 5 + 7 * n).sum::<usize>() + prefixes * PREFIX;
    let expected = rows(1) as f64 / rows(4) as f64;
    assert!(shared / apart < expected + 0.1, "{shared} of {apart} bytes, where {expected} of the rows are left");
}
