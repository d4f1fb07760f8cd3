//! Speed of every operation at the shapes of SmolLM2-135M, for one thread and for two:
//! `cargo run --release -p ballast-kernels --example ops [filter]`.
//!
//! With one thread, times are of the processor and not of the clock, so that a busy machine hardly changes them.
//! Columns: milliseconds a call (the mean, with two threads the median), calls in a training step of one micro-batch, GFLOP/s and GB/s counting only
//! what must be computed and moved.

use ballast_kernels::cpu::CpuBackend;
use ballast_kernels::{
    AdamW, AttentionShape, Backend, Bucket, Direction, Dropout, GatedActivation, KernelError, LoraPath, NormKind,
    PackedLayout, Philox, Segment, Target,
};
use std::time::Instant;

const T: usize = 1024;
const N: usize = 600;
const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD: usize = 64;
const VOCAB: usize = 49_152;
const RANK: usize = 16;
const LAYERS: usize = 30;
/// Adapter parameters: rank 16 on all seven linears of 30 layers.
const PARAMETERS: usize = 4_884_480;

type Result<T> = std::result::Result<T, KernelError>;

/// Seconds that this thread has run on a processor (Linux).
fn processor_seconds() -> Option<f64> {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(statistics.split(' ').next()?.parse::<f64>().ok()? * 1e-9)
}

/// The table's printer, with the sum of a step.
struct Report<'a> {
    filter: &'a str,
    single: bool,
    step_seconds: f64,
}

impl Report<'_> {
    /// Times `work`; `calls` of it make a step; `flops` and `bytes` are the least it must do.
    fn row(
        &mut self,
        name: &str,
        calls: usize,
        flops: f64,
        bytes: f64,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        if !name.contains(self.filter) {
            return Ok(());
        }
        work()?;
        let (mut times, start, processor) = (Vec::new(), Instant::now(), processor_seconds());
        while times.len() < 5 || (start.elapsed().as_secs_f64() < 0.3 && times.len() < 1000) {
            let start = Instant::now();
            work()?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let seconds = match (self.single, processor, processor_seconds()) {
            (true, Some(start), Some(end)) => (end - start) / times.len() as f64,
            _ => times[times.len() / 2],
        };
        self.step_seconds += seconds * calls as f64;
        println!(
            "{name:<38} {:>9.3} ms x {calls:>3} = {:>7.1} ms {:>8.1} GFLOP/s {:>7.1} GB/s",
            seconds * 1e3,
            seconds * calls as f64 * 1e3,
            flops / seconds * 1e-9,
            bytes / seconds * 1e-9
        );
        Ok(())
    }
}

fn values(len: usize) -> Vec<f32> {
    let philox = Philox::new([1, 2]);
    (0..len.div_ceil(4) as u32)
        .flat_map(|i| philox.words([i, 0, 0, 0]))
        .map(|word| word as f32 / 4_294_967_296.0 - 0.5)
        .take(len)
        .collect()
}

fn matrix(b: &CpuBackend, rows: usize, cols: usize) -> Result<<CpuBackend as Backend>::Activations> {
    b.upload_activations(&values(rows * cols), rows, cols)
}

fn packing() -> PackedLayout {
    PackedLayout::new(&[217, 180, 305, 122, 200], &[0, 1, 2, 3, 4])
}

fn linears(b: &CpuBackend, report: &mut Report<'_>) -> Result<()> {
    let layers = [
        ("q, o", 2, HIDDEN, HIDDEN),
        ("k, v", 2, HIDDEN, HEAD * KV_HEADS),
        ("gate, up", 2, HIDDEN, INTERMEDIATE),
        ("down", 1, INTERMEDIATE, HIDDEN),
    ];
    let packing = b.upload_packing(&packing())?;
    for (name, count, inp, out) in layers {
        let weight = b.pack_linear(&values(out * inp), out, inp, None)?;
        let (x, mut y, d_y, mut d_x) = (matrix(b, T, inp)?, matrix(b, T, out)?, matrix(b, T, out)?, matrix(b, T, inp)?);
        let parameters = b.upload_reals(&values((inp + out) * RANK))?;
        let (mut down, mut d_parameters) = (b.reals(T * RANK)?, b.reals((inp + out) * RANK)?);
        let flops = 2.0 * (T * inp * out) as f64;
        let thin = 2.0 * (T * RANK * (inp + out)) as f64;
        let bytes = 4.0 * (T * (inp + out) + inp * out) as f64;
        let calls = count * LAYERS;
        report.row(&format!("linear {name}, base"), 0, flops, bytes, || b.linear(&x, &weight, None, &mut y))?;
        for probability in [None, Some(0.1)] {
            let path = LoraPath::<CpuBackend> {
                parameters: &parameters,
                a: 0..inp * RANK,
                b: inp * RANK..(inp + out) * RANK,
                rank: RANK,
                scaling: 2.0,
                dropout: probability.map(|probability| Dropout {
                    probability,
                    seed: 1,
                    step: 1,
                    module: 1,
                    packing: &packing,
                }),
            };
            let label = if probability.is_some() { ", dropout" } else { "" };
            let calls = if probability.is_some() { 0 } else { calls };
            report.row(&format!("linear {name}{label}"), calls, flops + thin, bytes, || {
                b.linear(&x, &weight, Some((&path, &mut down)), &mut y)
            })?;
            report.row(&format!("linear_backward {name}{label}"), calls, flops + 2.0 * thin, bytes, || {
                let lora = Some((&path, &down, &mut d_parameters));
                b.linear_backward(&d_y, &x, &weight, lora, Some(Target::Overwrite(&mut d_x)))
            })?;
        }
    }
    Ok(())
}

fn pointwise(b: &CpuBackend, report: &mut Report<'_>) -> Result<()> {
    let packing = b.upload_packing(&packing())?;
    let (mut x, delta, mut out) = (matrix(b, T, HIDDEN)?, matrix(b, T, HIDDEN)?, matrix(b, T, HIDDEN)?);
    let (weight, mut inv_rms) = (b.upload_reals(&values(HIDDEN))?, b.reals(T)?);
    let plane = 4.0 * (T * HIDDEN) as f64;
    report.row("add_rms_norm", 2 * LAYERS, 0.0, 4.0 * plane, || {
        b.add_rms_norm(&mut x, Some(&delta), &weight, 1e-5, NormKind::Plain, &mut out, &mut inv_rms)
    })?;
    report.row("rms_norm_backward", 2 * LAYERS, 0.0, 4.0 * plane, || {
        b.rms_norm_backward(&delta, &x, &weight, NormKind::Plain, &inv_rms, Target::Add(&mut out))
    })?;
    report.row("add", 0, 0.0, 3.0 * plane, || b.add(&mut out, &delta))?;
    // True rotations: others would shrink the values to subnormals, call by call.
    let (cos, sin): (Vec<f32>, Vec<f32>) = (0..T * HEAD / 2).map(|i| ((i as f32).cos(), (i as f32).sin())).unzip();
    let tables = b.upload_rotary(&cos, &sin, HEAD / 2)?;
    report.row("rotary, 9 heads", 2 * LAYERS, 0.0, 2.0 * plane, || {
        b.rotary(&mut out, HEADS, &tables, &packing, Direction::Forward)
    })?;
    let (gate, up, d_out) = (matrix(b, T, INTERMEDIATE)?, matrix(b, T, INTERMEDIATE)?, matrix(b, T, INTERMEDIATE)?);
    let (mut wide, mut wider) = (matrix(b, T, INTERMEDIATE)?, matrix(b, T, INTERMEDIATE)?);
    let plane = 4.0 * (T * INTERMEDIATE) as f64;
    for activation in [GatedActivation::Silu, GatedActivation::GeluTanh] {
        let calls = if activation == GatedActivation::Silu { LAYERS } else { 0 };
        report.row(&format!("gated {activation:?}"), calls, 0.0, 3.0 * plane, || {
            b.gated(&gate, &up, activation, &mut wide)
        })?;
        report.row(&format!("gated_backward {activation:?}"), calls, 0.0, 5.0 * plane, || {
            b.gated_backward(&d_out, &gate, &up, activation, &mut wide, &mut wider)
        })?;
    }
    Ok(())
}

fn attention(b: &CpuBackend, report: &mut Report<'_>) -> Result<()> {
    let shape = AttentionShape {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD,
        scale: 1.0 / (HEAD as f32).sqrt(),
        window: None,
    };
    let (q, k, v) = (matrix(b, T, HIDDEN)?, matrix(b, T, KV_HEADS * HEAD)?, matrix(b, T, KV_HEADS * HEAD)?);
    let (mut out, d_out, mut d_q) = (matrix(b, T, HIDDEN)?, matrix(b, T, HIDDEN)?, matrix(b, T, HIDDEN)?);
    let (mut d_k, mut d_v) = (matrix(b, T, KV_HEADS * HEAD)?, matrix(b, T, KV_HEADS * HEAD)?);
    let mut saved = b.reals(T * HEADS)?;
    for (name, layout, calls) in [("5 packed", packing(), LAYERS), ("1 long", PackedLayout::new(&[T as u32], &[0]), 0)]
    {
        let pairs: usize = layout.bounds().windows(2).map(|w| ((w[1] - w[0]) as usize).pow(2) / 2).sum();
        let packing = b.upload_packing(&layout)?;
        let flops = 2.0 * (pairs * HEADS * HEAD) as f64;
        report.row(&format!("attention, {name}"), calls, 2.0 * flops, 0.0, || {
            b.attention(&q, &k, &v, &packing, &shape, &mut out, &mut saved)
        })?;
        report.row(&format!("attention_backward, {name}"), calls, 5.0 * flops, 0.0, || {
            b.attention_backward(&d_out, &q, &k, &v, &out, &saved, &packing, &shape, &mut d_q, &mut d_k, &mut d_v)
        })?;
    }
    let one = (matrix(b, 1, HIDDEN)?, matrix(b, 1, KV_HEADS * HEAD)?);
    let mut out = matrix(b, 1, HIDDEN)?;
    let mut cache = b.kv_cache(T + 1000, &shape)?;
    let mut context = matrix(b, T, HIDDEN)?;
    b.attention_cached(&q, &k, &v, &mut cache, &shape, &mut context)?;
    let bytes = 8.0 * (T * KV_HEADS * HEAD) as f64;
    report.row("attention_cached, 1 after 1024", 0, 4.0 * (T * HIDDEN) as f64, bytes, || {
        b.attention_cached(&one.0, &one.1, &one.1, &mut cache, &shape, &mut out)
    })
}

fn head(b: &CpuBackend, report: &mut Report<'_>) -> Result<()> {
    let table = b.pack_embedding(&values(VOCAB * HIDDEN), VOCAB, HIDDEN)?;
    let head = b.tied_head(&table)?;
    let targets = b.upload_indices(&(0..N as u32).map(|n| n * 71).collect::<Vec<_>>())?;
    let (hidden, mut d_hidden, mut losses) = (matrix(b, N, HIDDEN)?, matrix(b, N, HIDDEN)?, b.reals(N)?);
    let flops = 2.0 * (N * HIDDEN * VOCAB) as f64;
    report.row("linear_cross_entropy, loss and gradient", 1, 2.0 * flops, 8.0 * (VOCAB * HIDDEN) as f64, || {
        b.linear_cross_entropy(&hidden, &head, &targets, &mut losses, Some(&mut d_hidden))
    })?;
    report.row("log_probabilities", 0, flops, 4.0 * (VOCAB * HIDDEN) as f64, || {
        b.log_probabilities(&hidden, &head, &targets, &mut losses)
    })?;
    let (one, mut logits) = (matrix(b, 1, HIDDEN)?, b.reals(VOCAB)?);
    report.row("logits, 1 row", 0, 2.0 * (HIDDEN * VOCAB) as f64, 4.0 * (VOCAB * HIDDEN) as f64, || {
        b.logits(&one, &head, &mut logits)
    })?;
    let ids = b.upload_indices(&(0..T as u32).map(|n| n * 41).collect::<Vec<_>>())?;
    let mut out = matrix(b, T, HIDDEN)?;
    report.row("embedding", 1, 0.0, 8.0 * (T * HIDDEN) as f64, || b.embedding(&table, &ids, 1.0, &mut out))
}

fn optimizer(b: &CpuBackend, report: &mut Report<'_>) -> Result<()> {
    let (gradient, mut p) = (b.upload_reals(&values(PARAMETERS))?, b.upload_reals(&values(PARAMETERS))?);
    let (mut m, mut v) = (b.reals(PARAMETERS)?, b.reals(PARAMETERS)?);
    let each = PARAMETERS / (LAYERS * 14);
    let segments: Vec<Segment> =
        (0..LAYERS * 14).map(|i| Segment { range: i * each..(i + 1) * each, exponent: 30 }).collect();
    let whole = Bucket::whole(&segments, PARAMETERS);
    let (mut sums, mut flags) = (b.integers(PARAMETERS)?, b.integers(segments.len())?);
    let bytes = PARAMETERS as f64;
    report.row("accumulate_fixed", 1, 0.0, 20.0 * bytes, || {
        b.clear_integers(&mut flags)?;
        b.accumulate_fixed(&gradient, &whole, 50, &mut sums, &mut flags)
    })?;
    let mut back = b.reals(PARAMETERS)?;
    report.row("fixed_to_gradient", 1, 0.0, 12.0 * bytes, || b.fixed_to_gradient(&sums, &whole, 3.0, &mut back))?;
    report.row("max_abs", 1, 0.0, 4.0 * bytes, || b.max_abs(&gradient, &segments).map(drop))?;
    report.row("squared_norm", 1, 0.0, 4.0 * bytes, || b.squared_norm(&gradient).map(drop))?;
    let settings = AdamW {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        step: 3,
        gradient_scale: 1.0,
    };
    report.row("adamw", 1, 0.0, 28.0 * bytes, || b.adamw(&mut p, &gradient, &mut m, &mut v, &settings))
}

fn main() -> Result<()> {
    let filter = std::env::args().nth(1).unwrap_or_default();
    for threads in [1, 2] {
        let b = CpuBackend::new(threads)?;
        println!("# {threads} threads: {}", b.arithmetic()?);
        let mut report = Report { filter: &filter, single: threads == 1, step_seconds: 0.0 };
        linears(&b, &mut report)?;
        pointwise(&b, &mut report)?;
        attention(&b, &mut report)?;
        head(&b, &mut report)?;
        optimizer(&b, &mut report)?;
        println!(
            "# step of {T} tokens: {:.3} s, {:.0} tokens/s\n",
            report.step_seconds,
            T as f64 / report.step_seconds
        );
    }
    Ok(())
}
