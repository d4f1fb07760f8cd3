//! What a run is said to take of memory, beside what it takes.

use super::support::{ALL_LINEAR, decoder_on, run_spec, sample, shard, trainer};
use ballast_basemodel::{Activation, Architecture};
use ballast_kernels::cpu::{CpuBackend, CpuFootprint};
use ballast_kernels::dry_run::DryRun;
use ballast_kernels::{AttentionShape, Backend, Footprint, LowRank, PackedLayout, Storage};
use ballast_proto::v1::{Lora, RunSpec, Sequence};
use ballast_worker::collective::Solo;
use ballast_worker::lora::{Adapter, LoraLayout};
use ballast_worker::memory::{MemoryEstimate, MicroBatchSize, estimate};
use ballast_worker::model::{Batch, Decoder, Keep, Pass, Rows};
use ballast_worker::progress::Progress;

/// Bytes that buffers too small to matter may add, an eighth of which is rounding.
const SMALL: usize = 32 << 10;

/// Models in which, in turn, the MLP, the head and attention take most.
pub(crate) fn architectures() -> [Architecture; 3] {
    let tiny = Architecture { max_positions: 512, ..Architecture::tiny() };
    [
        Architecture { layers: 10, hidden_size: 64, intermediate_size: 256, ..tiny.clone() },
        Architecture { layers: 3, vocab_size: 3000, tied_embeddings: true, qkv_bias: true, ..tiny.clone() },
        Architecture {
            layers: 6,
            heads: 8,
            kv_heads: 2,
            head_dim: 16,
            qk_norm: true,
            norm_unit_offset: true,
            activation: Activation::GeluTanh,
            ..tiny
        },
    ]
}

/// A run of these targets.
pub(crate) fn run(targets: &[&str], dropout: f64, activation_checkpointing: bool) -> RunSpec {
    let run = run_spec();
    let target_modules = targets.iter().map(ToString::to_string).collect();
    let lora = run.lora.clone().map(|lora| Lora { rank: 4, dropout, target_modules, ..lora });
    RunSpec { lora, activation_checkpointing, ..run }
}

/// Bytes of the trainer when it waits, and of a step beyond that when it has most.
pub(crate) struct Measured {
    pub(crate) resident: usize,
    pub(crate) passing: usize,
}

/// Gives a backend's bytes in use and their peak; begins a new peak.
pub(crate) type Meter<B> = (fn(&B) -> (usize, usize), fn(&B));

/// What a run of one step with this micro-batch is said to take, and takes.
pub(crate) fn compare<B: Backend, F: Footprint>(
    backend: B,
    footprint: F,
    (usage, reset): Meter<B>,
    architecture: &Architecture,
    run: &RunSpec,
    sequences: &[Sequence],
) -> (MemoryEstimate, Measured) {
    let decoder = decoder_on(backend, architecture);
    let mut trainer = trainer(&decoder, run);
    let backend = &**decoder.backend();
    let scored = |sequence: &Sequence| sequence.loss.iter().map(|range| range.end - range.start).sum::<u32>() as usize;
    let micro_batch = MicroBatchSize {
        tokens: sequences.iter().map(|sequence| sequence.token_ids.len()).sum(),
        rows: sequences.iter().map(scored).sum(),
        keep: if run.activation_checkpointing { Keep::Inputs } else { Keep::Everything },
    };
    let estimate = estimate(footprint, architecture, trainer.layout(), micro_batch).unwrap();
    reset(backend);
    let resident = usage(backend).0;
    trainer.step(&shard(1, &[sequences.to_vec()]), &mut Solo).unwrap();
    (estimate, Measured { resident, passing: usage(backend).1 - resident })
}

/// What is taken is no more than was said, which is at most 15 % more.
pub(crate) fn assert_close(what: &str, estimated: usize, measured: usize) {
    assert!(measured <= estimated, "{what}: {measured} bytes taken where {estimated} were said");
    assert!(
        estimated <= measured + measured * 15 / 100 + SMALL,
        "{what}: {measured} bytes where {estimated} were said"
    );
}

pub(crate) const OF_CPU: Meter<CpuBackend> =
    (|backend| (backend.memory().in_use, backend.memory().peak), CpuBackend::reset_peak_memory);

#[test]
fn the_estimate_is_what_a_step_takes() {
    for (number, architecture) in architectures().iter().enumerate() {
        for (tokens, threads, checkpointing, dropout, weights) in [
            (40, 1, false, 0.0, Storage::F32),
            (40, 1, true, 0.2, Storage::Bf16),
            (333, 1, false, 0.2, Storage::F32),
            (333, 1, false, 0.0, Storage::Bf16),
            (333, 1, true, 0.0, Storage::F32),
            (512, 1, true, 0.2, Storage::F32),
        ] {
            let run = run(&ALL_LINEAR, dropout, checkpointing);
            let sequences = [sample(1, tokens, tokens / 4, architecture.vocab_size)];
            let backend = CpuBackend::with_weights(threads, weights).unwrap();
            let footprint = CpuFootprint { threads, weights };
            let (estimate, measured) = compare(backend, footprint, OF_CPU, architecture, &run, &sequences);
            let what = format!(
                "model {number}, {tokens} tokens, checkpointing {checkpointing}, dropout {dropout}, {weights:?}"
            );
            // Frozen weights and integers are not counted there.
            assert!(measured.resident < estimate.weights + estimate.adapter, "{what}: {} resident", measured.resident);
            assert_close(&what, estimate.kept + estimate.transient, measured.passing);
        }
    }
}

/// Weights that have no adapter are widened too.
#[test]
fn one_target_in_bf16_is_estimated_too() {
    for (target, architecture) in [("q_proj", &architectures()[0]), ("down_proj", &architectures()[1])] {
        let run = run(&[target], 0.0, false);
        let sequences = [sample(1, 40, 10, architecture.vocab_size)];
        let (threads, weights) = (1, Storage::Bf16);
        let backend = CpuBackend::with_weights(threads, weights).unwrap();
        let footprint = CpuFootprint { threads, weights };
        let (estimate, measured) = compare(backend, footprint, OF_CPU, architecture, &run, &sequences);
        assert_close(target, estimate.kept + estimate.transient, measured.passing);
    }
}

/// Many short sequences on several threads take no more than one long one is said to.
#[test]
fn no_packing_takes_more() {
    let architecture = &architectures()[0];
    for (checkpointing, threads) in [(false, 2), (true, 3)] {
        let run = run(&ALL_LINEAR, 0.2, checkpointing);
        let sequences: Vec<Sequence> = (0..24).map(|n| sample(n, 6 + n as usize % 9, 2, 61)).collect();
        let backend = CpuBackend::new(threads).unwrap();
        let footprint = CpuFootprint { threads, weights: Storage::F32 };
        let (estimate, measured) = compare(backend, footprint, OF_CPU, architecture, &run, &sequences);
        assert!(measured.passing <= estimate.kept + estimate.transient, "{estimate}: {} taken", measured.passing);
    }
}

/// Sizes of a GPU: bf16, buffers of multiples of 256 bytes, logits by chunks of 64 MiB.
#[derive(Debug)]
struct Bf16;

impl Footprint for Bf16 {
    fn storage(&self) -> usize {
        2
    }

    fn has_narrower(&self) -> bool {
        false
    }

    fn buffer(&self, bytes: usize) -> usize {
        bytes.max(1).next_multiple_of(256)
    }

    fn table(&self, bytes: usize) -> usize {
        self.buffer(bytes)
    }

    fn workspace(&self) -> usize {
        32 << 20
    }

    fn bias(&self, out: usize) -> usize {
        6 * out
    }

    fn packing(&self, tokens: usize, sequences: usize) -> usize {
        8 * (tokens + sequences)
    }

    fn segments(&self, elements: usize, segments: usize) -> usize {
        64 * (elements / 4096 + segments)
    }

    fn linear(&self, _: &LowRank) -> Vec<usize> {
        Vec::new()
    }

    fn linear_backward(&self, path: &LowRank) -> Vec<usize> {
        vec![4 * path.rows * path.rank]
    }

    fn attention(&self, _: usize, _: &AttentionShape) -> Vec<usize> {
        Vec::new()
    }

    fn attention_backward(&self, tokens: usize, shape: &AttentionShape) -> Vec<usize> {
        vec![8 * tokens * shape.heads]
    }

    fn scatter_rows(&self, rows: usize) -> Vec<usize> {
        vec![4 * rows]
    }

    fn cross_entropy(&self, rows: usize, vocab: usize, _: usize) -> Vec<usize> {
        let chunk = rows.min((64 << 20) / (6 * vocab));
        vec![chunk * vocab * 4, chunk * vocab * 2]
    }
}

/// SmolLM2-135M's shape, but for its vocabulary's table and its positions, which cost time here.
fn smollm2() -> Architecture {
    Architecture {
        hidden_size: 576,
        intermediate_size: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocab_size: 49_152,
        tied_embeddings: true,
        ..Architecture::tiny()
    }
}

/// Bytes of the slab that micro-batches of these sizes need, one after the other, and their largest peak.
fn slab_of(architecture: &Architecture, layout: &LoraLayout, keep: Keep, tokens: &[usize]) -> (usize, usize) {
    let backend = std::sync::Arc::new(DryRun::new(Bf16).unwrap());
    let zeros = |_: &str, shape: &[usize]| Ok(vec![0.0; shape.iter().product()]);
    let decoder = Decoder::from_weights(&backend, architecture, &zeros).unwrap();
    let parameters = backend.reals(layout.parameters()).unwrap();
    let mut gradient = backend.reals(layout.parameters()).unwrap();
    backend.reserve();
    let (resident, progress) = (backend.extent().in_use, Progress::new());
    for &tokens in tokens {
        let packed = PackedLayout::new(&[tokens as u32], &[0]);
        let batch = Batch::new(&*backend, &vec![0; tokens], &packed).unwrap();
        let adapter = Adapter { layout, parameters: &parameters, dropout: None };
        let pass = Pass { batch: &batch, adapter: Some(&adapter), progress: &progress };
        let rows = Rows::new(&*backend, &vec![0; tokens / 2]).unwrap();
        let (hidden, tape) = decoder.forward(&pass, &rows, keep).unwrap();
        let (mut losses, targets) = (backend.reals(tokens / 2).unwrap(), backend.upload_indices(&vec![0; tokens / 2]));
        let mut d_hidden = backend.activations(tokens / 2, architecture.hidden_size).unwrap();
        let (head, targets) = (decoder.head(), targets.unwrap());
        backend.linear_cross_entropy(&hidden, head, &targets, &mut losses, Some(&mut d_hidden)).unwrap();
        backend.read_reals(&losses).unwrap();
        drop((losses, targets));
        decoder.backward(&d_hidden, &pass, &rows, tape, &mut gradient, &mut |_, _| Ok(())).unwrap();
    }
    let extent = backend.extent();
    assert_eq!(extent.in_use, resident, "something was not given back");
    (extent.slab, extent.peak - resident)
}

/// The waste of the arena: what lies between buffers, over micro-batches of ever new shapes, is little beside what they
/// hold, and the estimate has room for it.
#[test]
fn ragged_micro_batches_fit_in_what_is_planned_for_the_largest() {
    let architecture = smollm2();
    let layout = LoraLayout::new(&architecture, run(&ALL_LINEAR, 0.0, false).lora.as_ref().unwrap()).unwrap();
    let sizes: Vec<usize> = (0..24_usize).map(|n| 300 + n * n * 7919 % 725).chain([1024, 777]).collect();
    for (keep, waste) in [(Keep::Everything, 0.02), (Keep::Inputs, 0.20)] {
        let micro_batch = MicroBatchSize { tokens: 1024, rows: 512, keep };
        let planned = estimate(Bf16, &architecture, &layout, micro_batch).unwrap();
        let (slab, peak) = slab_of(&architecture, &layout, keep, &sizes);
        let between = (slab - peak) as f64 / peak as f64;
        assert!(between <= waste, "{keep:?}: {between} of {peak} bytes lie between buffers");
        assert!(slab <= planned.activations(), "{keep:?}: {slab} bytes where {} are planned", planned.activations());
    }
}

/// What is kept without checkpointing grows by every layer's activations, with it by every layer's input alone.
#[test]
fn checkpointing_is_estimated_too() {
    let architecture = smollm2();
    let layout = LoraLayout::new(&architecture, run(&ALL_LINEAR, 0.0, false).lora.as_ref().unwrap()).unwrap();
    let of = |keep| estimate(Bf16, &architecture, &layout, MicroBatchSize { tokens: 1024, rows: 512, keep }).unwrap();
    let (everything, inputs) = (of(Keep::Everything), of(Keep::Inputs));
    assert!(inputs.kept < everything.kept / 5 && inputs.total() < everything.total(), "{inputs}\n{everything}");
    let (layers, stored) = (architecture.layers, 2 * 1024 * architecture.hidden_size);
    assert!((layers * stored..(layers + 4) * stored).contains(&inputs.kept), "{inputs}");
    assert_eq!((inputs.weights, inputs.adapter), (everything.weights, everything.adapter));
}
