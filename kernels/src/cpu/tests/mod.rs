//! What the CPU backend promises beyond the contract: bits that depend on nothing, and bounded memory.

mod shared_prefix;

use super::CpuBackend;
use crate::conformance::{Precision, Source, families};
use crate::{AttentionShape, Backend, PackedLayout, Storage, Target};

crate::conformance_suite!(one_thread, CpuBackend::new(1).unwrap(), Precision::F32);
crate::conformance_suite!(two_threads, CpuBackend::new(2).unwrap(), Precision::F32);

/// Every operation, every case, the same bits with one, two and three threads, and again on used buffers.
#[test]
fn bits_do_not_depend_on_threads() {
    let backends: Vec<CpuBackend> = [1, 2, 3, 2].into_iter().map(|threads| CpuBackend::new(threads).unwrap()).collect();
    for (name, family) in families::<CpuBackend>() {
        let first = family(&backends[0]);
        for backend in &backends {
            for (a, b) in first.iter().zip(family(backend)) {
                let same = a.got.iter().zip(&b.got).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name}: {} differs with {} threads", a.what, backend.threads());
            }
        }
    }
}

#[test]
fn attention_scratch_grows_with_the_length_and_not_its_square() {
    let peak = |length: u32| {
        let b = CpuBackend::new(2).unwrap();
        let mut source = Source::new(1);
        let (rows, packing) = (length as usize, b.upload_packing(&PackedLayout::new(&[length], &[0])).unwrap());
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 16, scale: 0.25, window: None };
        let mut matrix = |cols| source.matrix(&b, rows, cols, 1.0).0;
        let (q, k, v, d_out) = (matrix(32), matrix(16), matrix(16), matrix(32));
        let (mut out, mut d_q, mut d_k, mut d_v) = (matrix(32), matrix(32), matrix(16), matrix(16));
        let mut saved = b.reals(rows * 2).unwrap();
        let before = b.memory().in_use;
        b.reset_peak_memory();
        b.attention(&q, &k, &v, &packing, &shape, &mut out, &mut saved).unwrap();
        b.attention_backward(&d_out, &q, &k, &v, &out, &saved, &packing, &shape, &mut d_q, &mut d_k, &mut d_v).unwrap();
        assert_eq!(b.memory().in_use, before, "scratch was not returned");
        b.memory().peak - before
    };
    let (short, long) = (peak(1000), peak(4000));
    assert!(long < 4 * short, "{short} -> {long} bytes");
    assert!(long < 4000 * 4000 * 4 / 20, "{long} bytes for a length of 4000");
}

#[test]
fn logits_never_exist_whole() {
    let b = CpuBackend::new(2).unwrap();
    let mut source = Source::new(2);
    let (rows, hidden, vocab) = (2000, 4, 50_000);
    let head = b.pack_linear(&source.floats(vocab * hidden, 0.1), vocab, hidden, None).unwrap();
    let x = source.matrix(&b, rows, hidden, 1.0).0;
    let targets = b.upload_indices(&source.indices(rows, vocab)).unwrap();
    let (mut losses, mut d_x) = (b.reals(rows).unwrap(), b.activations(rows, hidden).unwrap());
    let before = b.memory().in_use;
    b.reset_peak_memory();
    b.linear_cross_entropy(&x, &head, &targets, &mut losses, Some(&mut d_x)).unwrap();
    let scratch = b.memory().peak - before;
    assert!(scratch <= 64 << 20, "{scratch} bytes");
    assert!(scratch < rows * vocab * 4 / 5);
}

#[test]
fn a_second_micro_batch_allocates_nothing_new() {
    let b = CpuBackend::new(2).unwrap();
    b.reserve(1 << 16).unwrap();
    let run =
        || families::<CpuBackend>().into_iter().filter(|(name, _)| *name == "linear").for_each(|(_, f)| drop(f(&b)));
    run();
    let allocated = b.memory().allocated;
    run();
    // Threads take scratch at the same time or one after the other, as it comes.
    assert!(b.memory().allocated <= allocated + (1 << 20), "{allocated} -> {}", b.memory().allocated);
    assert_eq!(b.memory().in_use, 0);
}

#[test]
fn the_description_names_what_matters() {
    let description = CpuBackend::new(1).unwrap().arithmetic().unwrap();
    for part in ["cpu f32", "gemm 0.19", "depth 512"] {
        assert!(description.contains(part), "{description}");
    }
}

/// The loops compiled for this machine's best instruction set against those of the baseline.
#[test]
fn bits_do_not_depend_on_the_instruction_set() {
    use super::{attention, dropout, fixed, gated, norm, rotary, simd};
    let mut source = Source::new(3);
    for len in [2, 15, 16, 31, 33, 127, 576, 1000] {
        let (x, y, z) = (source.floats(len, 2.0), source.floats(len, 2.0), source.floats(len, 2.0));
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let both = |best: &dyn Fn(&mut [f32]), baseline: &dyn Fn(&mut [f32])| {
            let (mut a, mut b) = (z.clone(), z.clone());
            best(&mut a);
            baseline(&mut b);
            assert_eq!(bits(&a), bits(&b), "{len} elements");
        };
        assert_eq!(simd::dot(&x, &y).to_bits(), simd::dot::baseline(&x, &y).to_bits());
        both(&|out| out[0] += attention::exponentials(out, 3.0), &|out| {
            out[0] += attention::exponentials::baseline(out, 3.0);
        });
        both(&|out| gated::silu_gate(&x, &y, out), &|out| gated::silu_gate::baseline(&x, &y, out));
        both(&|out| gated::gelu_gate(&x, &y, out), &|out| gated::gelu_gate::baseline(&x, &y, out));
        both(&|out| gated::gelu_gate_backward(&x, &y, &z, &mut x.clone(), out), &|out| {
            gated::gelu_gate_backward::baseline(&x, &y, &z, &mut x.clone(), out);
        });
        both(
            &|out| {
                norm::norm_group(&x, &y, 1.0, 1e-5, out);
            },
            &|out| {
                norm::norm_group::baseline(&x, &y, 1.0, 1e-5, out);
            },
        );
        both(&|out| norm::norm_group_backward(&x, &y, &x, 1.0, 0.7, true, out), &|out| {
            norm::norm_group_backward::baseline(&x, &y, &x, 1.0, 0.7, true, out);
        });
        let philox = crate::Philox::dropout(1, 2);
        both(&|out| dropout::mask_row(philox, 3, 4, 5, 1 << 31, 2.0, &x, out), &|out| {
            dropout::mask_row::baseline(philox, 3, 4, 5, 1 << 31, 2.0, &x, out);
        });
        both(&|out| rotary::rotate_row(out, &x[..len / 2], &y, -1.0), &|out| {
            rotary::rotate_row::baseline(out, &x[..len / 2], &y, -1.0);
        });
        let (mut a, mut b) = (vec![7; len], vec![7; len]);
        fixed::add_rounded(&x, 1024.0, &mut a);
        fixed::add_rounded::baseline(&x, 1024.0, &mut b);
        assert_eq!(a, b);
        assert_eq!(fixed::squares(&x).to_bits(), fixed::squares::baseline(&x).to_bits());
    }
}

/// Everything that is computed from a frozen weight, with and without bias, from one row and from many: activations, their
/// gradients, losses, logits.
fn of_weights(
    b: &CpuBackend,
    weight: &[f32],
    (rows, inp, out): (usize, usize, usize),
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let mut source = Source::new(11);
    let linear = b.pack_linear(weight, out, inp, bias).unwrap();
    let (x, d_y) = (source.matrix(b, rows, inp, 1.0).0, source.matrix(b, rows, out, 1.0).0);
    let mut y = b.activations(rows, out).unwrap();
    let (mut d_x, mut added) = (b.activations(rows, inp).unwrap(), source.matrix(b, rows, inp, 1.0).0);
    b.linear(&x, &linear, None, &mut y).unwrap();
    b.linear_backward(&d_y, &x, &linear, None, Some(Target::Overwrite(&mut d_x))).unwrap();
    b.linear_backward(&d_y, &x, &linear, None, Some(Target::Add(&mut added))).unwrap();

    let targets = b.upload_indices(&source.indices(rows, out)).unwrap();
    let (mut losses, mut d_hidden) = (b.reals(rows).unwrap(), b.activations(rows, inp).unwrap());
    b.linear_cross_entropy(&x, &linear, &targets, &mut losses, Some(&mut d_hidden)).unwrap();
    let mut logits = b.reals(rows * out).unwrap();
    b.logits(&x, &linear, &mut logits).unwrap();

    let table = b.pack_embedding(weight, out, inp).unwrap();
    let ids = b.upload_indices(&source.indices(rows, out)).unwrap();
    let mut embedded = b.activations(rows, inp).unwrap();
    b.embedding(&table, &ids, 1.5, &mut embedded).unwrap();
    let matrices = [y, d_x, added, d_hidden, embedded].map(|matrix| b.read_activations(&matrix).unwrap());
    [matrices.concat(), b.read_reals(&losses).unwrap(), b.read_reals(&logits).unwrap()].concat()
}

/// Weights in bf16 are f32 weights that were rounded, to the last bit of all that follows, and on any number of threads.
#[test]
fn weights_in_bf16_give_the_bits_of_the_rounded_weights() {
    let f32s = CpuBackend::new(2).unwrap();
    let bf16s = [1, 2, 3].map(|threads| CpuBackend::with_weights(threads, Storage::Bf16).unwrap());
    for (rows, inp, out) in
        [(1, 576, 192), (1, 33, 700), (7, 65, 31), (130, 64, 513), (40, 300, 1030), (9, 40, 5000), (40, 24, 16_385)]
    {
        let mut source = Source::new(5);
        let (weight, bias) = (source.floats(out * inp, 0.1), source.floats(out, 0.5));
        let rounded: Vec<f32> = weight.iter().map(|&w| half::bf16::from_f32(w).to_f32()).collect();
        assert_ne!(weight, rounded);
        for bias in [None, Some(&bias[..])] {
            let want = of_weights(&f32s, &rounded, (rows, inp, out), bias);
            for backend in &bf16s {
                let got = of_weights(backend, &weight, (rows, inp, out), bias);
                let differing = got.iter().zip(&want).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                let threads = backend.threads();
                assert_eq!(differing, 0, "[{rows}, {inp}] to {out}, bias {}, {threads} threads", bias.is_some());
            }
        }
    }
    assert!(bf16s[0].arithmetic().unwrap().contains("weights bf16"));
}
