//! Small models, runs and shards; ranks that are threads.

use ballast_basemodel::Architecture;
use ballast_kernels::cpu::CpuBackend;
use ballast_kernels::{Backend, Philox};
use ballast_proto::v1::schedule::Kind;
use ballast_proto::v1::{
    Generation, Lora, MicroBatch, Optimizer, Reduction, RunSpec, Schedule, Sequence, StepShard, TokenRange,
};
use ballast_worker::collective::{Collective, CollectiveError};
use ballast_worker::model::Decoder;
use ballast_worker::progress::Progress;
use ballast_worker::trainer::Trainer;
use std::sync::{Arc, Barrier, Mutex};

pub(crate) const ALL_LINEAR: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Uniform values within ±`bound`, as a function of `name`.
pub(crate) fn uniform(name: &str, len: usize, bound: f32) -> Vec<f32> {
    drawn(0, name, len, bound)
}

/// The same, of another draw of all tensors.
pub(crate) fn drawn(draw: u32, name: &str, len: usize, bound: f32) -> Vec<f32> {
    let key = name.bytes().fold(17u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let generator = Philox::new([key, draw]);
    let words = (0..len.div_ceil(4)).flat_map(|quad| generator.words([quad as u32, 0, 0, 0]));
    words.take(len).map(|word| bound * (word as f32 / 2f32.powi(31) - 1.0)).collect()
}

/// A decoder on the CPU, as [`decoder_on`] makes them.
pub(crate) fn decoder(architecture: &Architecture, threads: usize) -> Arc<Decoder<CpuBackend>> {
    decoder_on(CpuBackend::new(threads).unwrap(), architecture)
}

/// A decoder with random weights, norms near one.
pub(crate) fn decoder_on<B: Backend>(backend: B, architecture: &Architecture) -> Arc<Decoder<B>> {
    let backend = Arc::new(backend);
    let offset = if architecture.norm_unit_offset { 0.0 } else { 1.0 };
    let weights = |name: &str, shape: &[usize]| {
        let len = shape.iter().product();
        Ok(if name.contains("norm") {
            uniform(name, len, 0.3).into_iter().map(|value| offset + value).collect()
        } else {
            uniform(name, len, 0.5)
        })
    };
    Arc::new(Decoder::from_weights(&backend, architecture, &weights).unwrap())
}

/// A run with all linear layers adapted, at rank 3.
pub(crate) fn run_spec() -> RunSpec {
    RunSpec {
        lora: Some(Lora {
            rank: 3,
            alpha: 6.0,
            scaling: 2.0,
            dropout: 0.0,
            target_modules: ALL_LINEAR.map(String::from).to_vec(),
        }),
        optimizer: Some(Optimizer {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            clip_norm: 1.0,
        }),
        schedule: Some(Schedule { kind: Kind::Cosine as i32, warmup_steps: 1 }),
        seed: 42,
        total_steps: 8,
        reduction: Reduction::Exact as i32,
        ..RunSpec::default()
    }
}

pub(crate) fn trainer<B: Backend>(decoder: &Arc<Decoder<B>>, run: &RunSpec) -> Trainer<B> {
    Trainer::new(Arc::clone(decoder.backend()), Arc::clone(decoder), run, Progress::new()).unwrap()
}

/// A sample of random tokens, all after `prompt_len` bearing loss.
pub(crate) fn sample(number: u64, len: usize, prompt_len: usize, vocab_size: usize) -> Sequence {
    let ids = uniform(&format!("sample {number}"), len, 0.5);
    let ids: Vec<u32> = ids.iter().map(|value| ((value + 0.5) * (vocab_size as f32 - 1.0)) as u32).collect();
    sequence(number, ids, prompt_len)
}

pub(crate) fn sequence(number: u64, token_ids: Vec<u32>, prompt_len: usize) -> Sequence {
    let loss = vec![TokenRange { start: prompt_len as u32, end: token_ids.len() as u32 }];
    Sequence { sample: number, token_ids, loss }
}

/// The whole of a step: each inner list is a micro-batch.
pub(crate) fn shard(step: u64, micro_batches: &[Vec<Sequence>]) -> StepShard {
    let sequences = || micro_batches.iter().flatten();
    let loss_tokens = |s: &Sequence| s.loss.iter().map(|range| u64::from(range.end - range.start)).sum::<u64>();
    let numbered =
        |(index, sequences): (usize, &Vec<Sequence>)| MicroBatch { index: index as u32, sequences: sequences.clone() };
    StepShard {
        generation: Some(Generation::new(1, 1)),
        step,
        step_micro_batches: micro_batches.len() as u32,
        step_loss_tokens: sequences().map(loss_tokens).sum(),
        step_tokens: sequences().map(|s| s.token_ids.len() as u64).sum(),
        micro_batches: micro_batches.iter().enumerate().map(numbered).collect(),
        ..StepShard::default()
    }
}

/// The part of a step whose micro-batches `owned` picks by index.
pub(crate) fn part(shard: &StepShard, owned: impl Fn(u32) -> bool) -> StepShard {
    let mut part = shard.clone();
    part.micro_batches.retain(|batch| owned(batch.index));
    part
}

/// One rank of a world of threads.
pub(crate) struct ThreadRank {
    rank: usize,
    world_size: usize,
    shared: Arc<Shared>,
}

struct Shared {
    integers: Mutex<Option<Vec<i64>>>,
    reals: Mutex<Option<Vec<f32>>>,
    barrier: Barrier,
}

impl ThreadRank {
    pub(crate) fn world(world_size: usize) -> Vec<Self> {
        let (integers, reals, barrier) = (Mutex::default(), Mutex::default(), Barrier::new(world_size));
        let shared = Arc::new(Shared { integers, reals, barrier });
        (0..world_size).map(|rank| Self { rank, world_size, shared: Arc::clone(&shared) }).collect()
    }
}

/// Each rank merges its values into the total as it comes; all take the total.
fn reduce<T: Copy>(total: &Mutex<Option<Vec<T>>>, barrier: &Barrier, values: &mut [T], merge: fn(T, T) -> T) {
    {
        let mut total = total.lock().unwrap();
        match &mut *total {
            Some(total) => total.iter_mut().zip(values.iter()).for_each(|(t, v)| *t = merge(*t, *v)),
            None => *total = Some(values.to_vec()),
        }
    }
    barrier.wait();
    values.copy_from_slice(total.lock().unwrap().as_ref().unwrap());
    if barrier.wait().is_leader() {
        *total.lock().unwrap() = None;
    }
    barrier.wait();
}

impl Collective for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce_sum(&mut self, values: &mut [i64]) -> Result<(), CollectiveError> {
        reduce(&self.shared.integers, &self.shared.barrier, values, i64::wrapping_add);
        Ok(())
    }

    fn all_reduce_max(&mut self, values: &mut [i64]) -> Result<(), CollectiveError> {
        reduce(&self.shared.integers, &self.shared.barrier, values, i64::max);
        Ok(())
    }

    fn all_reduce_sum_reals(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        reduce(&self.shared.reals, &self.shared.barrier, values, |a, b| a + b);
        Ok(())
    }
}
