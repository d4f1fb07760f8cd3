//! The trainer on the CUDA backend: as on the CPU, and with bits of its own that depend on nothing but the work.

use super::models::{self, decoder};
use super::step::MicroBatch;
use crate::support::{run_spec, sample, shard, trainer};
use ballast_basemodel::Architecture;
use ballast_kernels::Backend;
use ballast_kernels::cpu::CpuBackend;
use ballast_kernels::cuda::{CudaBackend, Storage};
use ballast_proto::v1::{Lora, RunSpec, StepShard};
use ballast_worker::collective::Solo;
use ballast_worker::lora::LoraLayout;
use ballast_worker::trainer::StepOutcome;
use std::sync::Arc;

/// Three steps of three micro-batches.
fn steps(vocabulary: usize) -> Vec<StepShard> {
    let sample = |number: u64| sample(number, 4 + (number % 7) as usize, 1 + (number % 3) as usize, vocabulary);
    let micro_batch = |step: u64, index: u64| (0..=index % 3).map(|n| sample(step * 100 + index * 10 + n)).collect();
    (1..=3).map(|step| shard(step, &(0..3).map(|index| micro_batch(step, index)).collect::<Vec<_>>())).collect()
}

fn run_with_dropout() -> RunSpec {
    let run = run_spec();
    RunSpec { lora: run.lora.clone().map(|lora| Lora { dropout: 0.1, ..lora }), ..run }
}

/// Trains all steps; `order` may reorder their micro-batches.
fn train<B: Backend>(backend: B, architecture: &Architecture, order: fn(&mut StepShard)) -> Vec<StepOutcome> {
    let mut trainer = trainer(&Arc::new(decoder(&Arc::new(backend), architecture)), &run_with_dropout());
    let mut steps = steps(architecture.vocab_size);
    steps.iter_mut().for_each(order);
    steps.iter().map(|step| trainer.step(step, &mut Solo).unwrap()).collect()
}

fn cuda(storage: Storage) -> CudaBackend {
    CudaBackend::new(0, storage).unwrap()
}

#[test]
fn trains_as_on_the_cpu() {
    for family in [models::llama(), models::gemma()] {
        let architecture = family.layers(2);
        let on_cpu = train(CpuBackend::new(1).unwrap(), &architecture, |_| ());
        let on_cuda = train(cuda(Storage::F32), &architecture, |_| ());
        for (cpu, cuda) in on_cpu.iter().zip(&on_cuda) {
            let (loss, norm) = (cuda.loss / cpu.loss - 1.0, cuda.grad_norm / cpu.grad_norm - 1.0);
            println!("{}: loss {} on the CPU, off by {loss:.1e}; norm off by {norm:.1e}", family.name, cpu.loss);
            assert!(loss.abs() <= 1e-5 && norm.abs() <= 1e-4, "{}: {cpu:?} {cuda:?}", family.name);
            assert_eq!((cuda.loss_tokens, cuda.tokens, cuda.recomputed), (cpu.loss_tokens, cpu.tokens, cpu.recomputed));
        }
        // What came of the first steps is seen in the last.
        assert!((on_cpu[2].loss / on_cpu[0].loss - 1.0).abs() > 1e-3);
    }
}

/// The state after each step, by its hash.
#[test]
fn any_order_of_micro_batches_gives_the_same_bits() {
    for storage in [Storage::F32, Storage::Bf16] {
        let states = |order| -> Vec<[u8; 32]> {
            let outcomes = train(cuda(storage), &models::llama().layers(2), order);
            outcomes.iter().map(|outcome| outcome.state_sha256).collect()
        };
        let forwards = states(|_| ());
        assert_eq!(forwards, states(|step| step.micro_batches.reverse()), "{storage:?}");
    }
}

/// The same micro-batch on a fresh backend, and on one whose buffers were full of a longer one.
#[test]
fn bits_of_a_gradient_do_not_depend_on_what_ran_before() {
    let family = models::mistral_window();
    let architecture = family.layers(2);
    let layout = LoraLayout::new(&architecture, &family.lora(0.1)).unwrap();
    let parameters = models::parameters(&layout);
    let short = MicroBatch::new(&[17, 1, 30], architecture.vocab_size);
    for storage in [Storage::F32, Storage::Bf16] {
        let bits = |before: &[MicroBatch]| -> Vec<u32> {
            let decoder = decoder(&Arc::new(cuda(storage)), &architecture);
            for batch in before {
                batch.step(&decoder, &layout, &parameters);
            }
            let step = short.step(&decoder, &layout, &parameters);
            let read = |vector| decoder.backend().read_reals(vector).unwrap();
            read(&step.losses).iter().chain(&read(&step.gradient)).map(|value| value.to_bits()).collect()
        };
        let fresh = bits(&[]);
        let longer = MicroBatch::new(&[50, 9], architecture.vocab_size);
        assert_eq!(fresh, bits(&[longer, MicroBatch::new(&[5], architecture.vocab_size)]), "{storage:?}");
    }
}
