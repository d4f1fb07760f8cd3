//! Packed causal attention, forward and backward.

use super::source::{poisoned, poisoned_reals};
use super::{Comparison, Source, ok, plain};
use crate::{AttentionShape, Backend, PackedLayout, reference};

struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    lengths: &'static [u32],
    window: Option<usize>,
}

const CASES: &[Case] = &[
    Case { heads: 1, kv_heads: 1, head_dim: 16, lengths: &[1], window: None },
    Case { heads: 9, kv_heads: 3, head_dim: 64, lengths: &[1, 2, 31, 33], window: None },
    Case { heads: 3, kv_heads: 1, head_dim: 128, lengths: &[127], window: None },
    Case { heads: 9, kv_heads: 1, head_dim: 16, lengths: &[129, 1, 64], window: None },
    Case { heads: 3, kv_heads: 3, head_dim: 64, lengths: &[65, 32], window: None },
    Case { heads: 2, kv_heads: 1, head_dim: 3, lengths: &[40, 7], window: None },
    Case { heads: 1, kv_heads: 1, head_dim: 16, lengths: &[1000], window: None },
    Case { heads: 2, kv_heads: 2, head_dim: 16, lengths: &[1100, 3], window: Some(600) },
    Case { heads: 3, kv_heads: 1, head_dim: 64, lengths: &[129, 5], window: Some(1) },
    Case { heads: 3, kv_heads: 1, head_dim: 16, lengths: &[700], window: Some(7) },
    Case { heads: 2, kv_heads: 1, head_dim: 16, lengths: &[33, 127], window: Some(64) },
    Case { heads: 1, kv_heads: 1, head_dim: 16, lengths: &[31], window: Some(1000) },
    // The head sizes of real models, which a backend may have kernels of their own for.
    Case { heads: 4, kv_heads: 2, head_dim: 64, lengths: &[127, 1, 129, 2, 31, 33], window: None },
    Case { heads: 2, kv_heads: 1, head_dim: 64, lengths: &[150, 3], window: Some(70) },
    Case { heads: 2, kv_heads: 1, head_dim: 96, lengths: &[33, 129, 1], window: None },
    Case { heads: 2, kv_heads: 2, head_dim: 96, lengths: &[127, 31], window: Some(33) },
    Case { heads: 4, kv_heads: 2, head_dim: 128, lengths: &[2, 129, 31], window: None },
    Case { heads: 3, kv_heads: 1, head_dim: 128, lengths: &[129, 64], window: Some(40) },
    Case { heads: 2, kv_heads: 1, head_dim: 256, lengths: &[33, 127, 1], window: None },
    Case { heads: 1, kv_heads: 1, head_dim: 256, lengths: &[2, 129], window: Some(65) },
    Case { heads: 2, kv_heads: 1, head_dim: 31, lengths: &[40, 7], window: Some(19) },
    // More stacked heads than rows of a block.
    Case { heads: 40, kv_heads: 1, head_dim: 4, lengths: &[35], window: None },
];

pub(super) fn compare<B: Backend>(b: &B) -> Vec<Comparison> {
    compare_up_to(b, u32::MAX)
}

/// Without long sequences.
pub(super) fn compare_short<B: Backend>(b: &B) -> Vec<Comparison> {
    compare_up_to(b, 200)
}

fn compare_up_to<B: Backend>(b: &B, longest: u32) -> Vec<Comparison> {
    let mut source = Source::new(500);
    let cases = CASES.iter().filter(|case| case.lengths.iter().all(|&length| length <= longest));
    let mut all: Vec<Comparison> = cases.flat_map(|case| one(b, &mut source, case, 1.0)).collect();
    // Scores of some hundreds: only the softmax's shift keeps them finite.
    all.extend(one(b, &mut source, &CASES[1], 12.0));
    all
}

fn one<B: Backend>(b: &B, source: &mut Source, case: &Case, deviation: f64) -> Vec<Comparison> {
    let &Case { heads, kv_heads, head_dim, lengths, window } = case;
    let name = format!("{heads}/{kv_heads} heads of {head_dim}, {lengths:?}, window {window:?}, deviation {deviation}");
    let layout = PackedLayout::new(lengths, &vec![0; lengths.len()]);
    let (rows, bounds) = (layout.tokens(), layout.bounds());
    let shape = AttentionShape { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), window };
    let packing = ok(b.upload_packing(&layout));
    let (q_cols, kv_cols) = (heads * head_dim, kv_heads * head_dim);
    let (q, q_stored) = source.matrix(b, rows, q_cols, deviation);
    let (k, k_stored) = source.matrix(b, rows, kv_cols, deviation);
    let (v, v_stored) = source.matrix(b, rows, kv_cols, 1.0);
    let (mut out, mut saved) = (poisoned(b, rows, q_cols), poisoned_reals(b, rows * heads));
    ok(b.attention(&q, &k, &v, &packing, &shape, &mut out, &mut saved));
    let (want, want_saved) = reference::attention(&q_stored, &k_stored, &v_stored, bounds, &shape);
    let plain = plain::Attention { q: &q_stored, k: &k_stored, v: &v_stored, bounds, shape: &shape };
    let (plain_out, plain_saved) = plain.forward();
    // An error of a score is relative to the score, and an error of a probability that of its score.
    let units = 16.0 * deviation * deviation;
    let mut all = vec![
        Comparison::stored(format!("attention out, {name}"), ok(b.read_activations(&out)), want, units)
            .plainly(plain_out),
        Comparison::real(format!("attention log_sum_exp, {name}"), ok(b.read_reals(&saved)), want_saved, 16.0)
            .plainly(plain_saved),
    ];

    let (d_out, d_stored) = source.matrix(b, rows, q_cols, 1.0);
    let (mut d_q, mut d_k, mut d_v) =
        (poisoned(b, rows, q_cols), poisoned(b, rows, kv_cols), poisoned(b, rows, kv_cols));
    ok(b.attention_backward(&d_out, &q, &k, &v, &out, &saved, &packing, &shape, &mut d_q, &mut d_k, &mut d_v));
    let want = reference::attention_backward(&d_stored, &q_stored, &k_stored, &v_stored, bounds, &shape);
    let plain = plain.backward(&d_stored);
    let units = 2.0 * units;
    all.push(
        Comparison::stored(format!("attention d_v, {name}"), ok(b.read_activations(&d_v)), want.d_v, units)
            .plainly(plain.d_v),
    );
    // Where every query sees one key alone, the gradients of queries and keys vanish up to rounding.
    if rows > 1 && window != Some(1) {
        all.push(
            Comparison::stored(format!("attention d_q, {name}"), ok(b.read_activations(&d_q)), want.d_q, units)
                .plainly(plain.d_q),
        );
        all.push(
            Comparison::stored(format!("attention d_k, {name}"), ok(b.read_activations(&d_k)), want.d_k, units)
                .plainly(plain.d_k),
        );
    } else {
        for matrix in [&d_q, &d_k] {
            assert!(ok(b.read_activations(matrix)).iter().all(|x| x.abs() < 1e-4), "{name}");
        }
    }
    all
}
