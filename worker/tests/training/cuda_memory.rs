//! Planned memory on a CUDA device: a real one, or the software device (`make test-cuda`), which needs memory as a real
//! one does.

use super::memory::{architectures, assert_close, compare, run};
use super::support::{ALL_LINEAR, decoder_on, sample, shard, trainer};
use ballast_basemodel::Architecture;
use ballast_kernels::Backend;
use ballast_kernels::cuda::{CudaBackend, CudaFootprint, Storage};
use ballast_proto::v1::StepShard;
use ballast_worker::collective::Solo;
use ballast_worker::memory::{MicroBatchSize, estimate};
use ballast_worker::model::Keep;
use bytes::Bytes;

fn backend(storage: Storage) -> CudaBackend {
    CudaBackend::new(0, storage).unwrap()
}

#[test]
fn the_estimate_is_what_a_run_takes() {
    let usage = (
        (|backend| (backend.memory().in_use, backend.memory().peak)) as fn(&CudaBackend) -> (usize, usize),
        CudaBackend::reset_peak_memory as fn(&CudaBackend),
    );
    // Few, because the software device takes its time.
    let cases = [
        (0, Storage::F32, 37, false),
        (0, Storage::Bf16, 50, true),
        (1, Storage::Bf16, 37, true),
        (2, Storage::Bf16, 37, false),
    ];
    for (number, storage, tokens, checkpointing) in cases {
        let architecture = Architecture { layers: 3, ..architectures()[number].clone() };
        let run = run(&ALL_LINEAR, 0.2, checkpointing);
        let sequences = [sample(1, tokens - 20, 9, 61), sample(2, 20, 9, 61)];
        let footprint = CudaFootprint { storage };
        let (estimate, measured) = compare(backend(storage), footprint, usage, &architecture, &run, &sequences);
        let what = format!("model {number}, {storage:?}, {tokens} tokens, checkpointing {checkpointing}");
        assert_eq!(estimate.weights + estimate.adapter + estimate.workspace, measured.resident, "{what}");
        assert_close(&what, estimate.kept + estimate.transient, measured.passing);
    }
}

/// Steps of ragged micro-batches of at most 50 tokens.
fn steps() -> Vec<StepShard> {
    let of_lengths = |step: u64, lengths: &[usize]| {
        lengths.iter().zip(0..).map(|(&len, n)| sample(10 * step + n, len, len / 3, 61)).collect::<Vec<_>>()
    };
    let step = |step: u64, micro_batches: &[&[usize]]| {
        shard(step, &micro_batches.iter().map(|lengths| of_lengths(step, lengths)).collect::<Vec<_>>())
    };
    vec![step(1, &[&[50], &[7, 9, 13]]), step(2, &[&[31, 18]]), step(3, &[&[5], &[44, 6]])]
}

/// Hashes of the state after each step. With `reserved`, all but what lives as long as the trainer lies in what was
/// reserved, also after the state was replaced.
fn trained(storage: Storage, checkpointing: bool, reserved: bool) -> Vec<[u8; 32]> {
    let architecture = Architecture { layers: 3, qk_norm: true, ..Architecture::tiny() };
    let decoder = decoder_on(backend(storage), &architecture);
    let mut trainer = trainer(&decoder, &run(&ALL_LINEAR, 0.2, checkpointing));
    let keep = if checkpointing { Keep::Inputs } else { Keep::Everything };
    let size = MicroBatchSize { tokens: 50, rows: 50, keep };
    let planned = estimate(decoder.backend().footprint(), &architecture, trainer.layout(), size).unwrap();
    if reserved {
        decoder.backend().reserve(planned.activations()).unwrap();
        assert_eq!(decoder.backend().memory().allocated, planned.total().next_multiple_of(256));
    }
    let allocated = decoder.backend().memory().allocated;
    let state = trainer.export_state().unwrap();
    let files: Vec<(String, Bytes)> = state.files.into_iter().map(|(name, file)| (name, file.into())).collect();
    trainer.import_state(0, &files).unwrap();
    let mut hashes = Vec::new();
    for step in steps() {
        hashes.push(trainer.step(&step, &mut Solo).unwrap().state_sha256);
        assert!(!reserved || decoder.backend().memory().allocated == allocated, "step {}", step.step);
    }
    decoder.backend().synchronize().unwrap();
    hashes
}

#[test]
fn a_run_stays_within_its_reservation_and_its_bits_are_the_same() {
    for storage in [Storage::F32, Storage::Bf16] {
        let exact = trained(storage, false, false);
        for (checkpointing, reserved) in [(false, true), (true, false), (true, true)] {
            let other = trained(storage, checkpointing, reserved);
            assert!(exact == other, "{storage:?}: checkpointing {checkpointing}, reserved {reserved}");
        }
    }
}
