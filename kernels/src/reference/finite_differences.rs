//! Every gradient of the reference against central differences of its forward function, in f64.

use super::*;
use crate::conformance::Source;
use crate::{AttentionShape, Direction, GatedActivation, NormKind, PackedLayout};

/// Compares `gradient` with the central differences of `sum(d_out * f(x))` in every element of `x`.
fn check(what: &str, x: &[f64], d_out: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    let loss = |x: &[f64]| -> f64 { f(x).iter().zip(d_out).map(|(y, d)| y * d).sum() };
    let step = 1e-5;
    let mut differences = Vec::new();
    let mut moved = x.to_vec();
    for i in 0..x.len() {
        moved[i] = x[i] + step;
        let above = loss(&moved);
        moved[i] = x[i] - step;
        let below = loss(&moved);
        moved[i] = x[i];
        differences.push((above - below) / (2.0 * step));
    }
    let error: f64 = differences.iter().zip(gradient).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    let norm: f64 = differences.iter().map(|a| a * a).sum::<f64>().sqrt();
    assert!(norm > 0.0, "{what}: a gradient of zeros proves nothing");
    assert!(error / norm <= 1e-7, "{what}: {:e}", error / norm);
}

#[test]
fn linear_with_low_rank_path_and_dropout() {
    let mut source = Source::new(1);
    for (rows, inp, out, rank, probability) in
        [(1, 1, 1, 1, 0.0), (3, 5, 4, 2, 0.0), (7, 9, 3, 4, 0.3), (2, 3, 8, 1, 0.5)]
    {
        let shape = LinearShape { rows, inp, out };
        let (x, w, bias) = (source.reals(rows * inp), source.reals(out * inp), source.reals(out));
        let (a, b, d_y) = (source.reals(rank * inp), source.reals(out * rank), source.reals(rows * out));
        let layout = PackedLayout::new(&[rows as u32], &[5]);
        let mask = dropout_mask(&layout, inp, probability, 11, 3, 2);
        let path = Lora { a: &a, b: &b, rank, scaling: 1.7, mask: &mask };
        let g = linear_backward(shape, &d_y, &x, &w, Some(path));
        check("d_x", &x, &d_y, &g.d_x, |x| linear(shape, x, &w, Some(&bias), Some(path)).0);
        check("d_a", &a, &d_y, &g.d_a, |a| linear(shape, &x, &w, None, Some(Lora { a, ..path })).0);
        check("d_b", &b, &d_y, &g.d_b, |b| linear(shape, &x, &w, None, Some(Lora { b, ..path })).0);
        let plain = linear_backward(shape, &d_y, &x, &w, None);
        check("d_x without a path", &x, &d_y, &plain.d_x, |x| linear(shape, x, &w, None, None).0);
    }
}

#[test]
fn norms() {
    let mut source = Source::new(2);
    for (groups, n) in [(1, 2), (3, 5), (4, 17)] {
        for kind in [NormKind::Plain, NormKind::UnitOffset] {
            let (x, w, d) = (source.reals(groups * n), source.reals(n), source.reals(groups * n));
            let (_, inv_rms) = rms_norm(&x, &w, 1e-5, kind);
            let g = rms_norm_backward(&d, &x, &w, kind, &inv_rms);
            check("rms_norm", &x, &d, &g, |x| rms_norm(x, &w, 1e-5, kind).0);
        }
    }
}

#[test]
fn rotation() {
    let mut source = Source::new(3);
    let (heads, half, positions) = (2, 3, [0, 1, 2, 0, 4]);
    let angles = source.reals(5 * half);
    let (cos, sin): (Vec<f64>, Vec<f64>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
    let (x, d) = (source.reals(5 * heads * 2 * half), source.reals(5 * heads * 2 * half));
    let turn = |x: &[f64], direction| rotary(x, heads, &cos, &sin, half, &positions, direction);
    check("rotary", &x, &d, &turn(&d, Direction::Backward), |x| turn(x, Direction::Forward));
}

#[test]
#[allow(clippy::type_complexity)]
fn packed_attention() {
    let mut source = Source::new(4);
    let cases: [(usize, usize, usize, &[u32], Option<usize>); 6] = [
        (1, 1, 2, &[1, 4], None),
        (3, 1, 4, &[2, 1, 5], None),
        (4, 2, 3, &[7], None),
        (9, 3, 2, &[3, 2], Some(2)),
        (2, 2, 5, &[6], Some(1)),
        (2, 1, 3, &[6, 4], Some(3)),
    ];
    for (heads, kv_heads, head_dim, lengths, window) in cases {
        let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.6, window };
        let layout = PackedLayout::new(lengths, &vec![0; lengths.len()]);
        let (bounds, rows) = (layout.bounds(), layout.tokens());
        let (q, d) = (source.reals(rows * heads * head_dim), source.reals(rows * heads * head_dim));
        let (k, v) = (source.reals(rows * kv_heads * head_dim), source.reals(rows * kv_heads * head_dim));
        let g = attention_backward(&d, &q, &k, &v, bounds, &shape);
        check("d_v", &v, &d, &g.d_v, |v| attention(&q, &k, v, bounds, &shape).0);
        // With a window of one, a query's single probability is 1 whatever it asks.
        if window != Some(1) {
            check("d_q", &q, &d, &g.d_q, |q| attention(q, &k, &v, bounds, &shape).0);
            check("d_k", &k, &d, &g.d_k, |k| attention(&q, k, &v, bounds, &shape).0);
        }
    }
}

#[test]
fn gates() {
    let mut source = Source::new(5);
    for activation in [GatedActivation::Silu, GatedActivation::GeluTanh] {
        let (gate, up, d) = (source.reals(33), source.reals(33), source.reals(33));
        let (d_gate, d_up) = gated_backward(&d, &gate, &up, activation);
        check("d_gate", &gate, &d, &d_gate, |gate| gated(gate, &up, activation));
        check("d_up", &up, &d, &d_up, |up| gated(&gate, up, activation));
    }
}

#[test]
fn output_head() {
    let mut source = Source::new(6);
    for (inp, vocab, targets) in [(3, 5, vec![0, 4, 2, 2]), (7, 2, vec![1]), (2, 33, vec![32, 0])] {
        let (hidden, w, bias) = (source.reals(inp * targets.len()), source.reals(vocab * inp), source.reals(vocab));
        let (losses, d_hidden) = cross_entropy(&hidden, &w, vocab, Some(&bias), &targets);
        let ones = vec![1.0; losses.len()];
        check("d_hidden", &hidden, &ones, &d_hidden, |h| cross_entropy(h, &w, vocab, Some(&bias), &targets).0);
        for (loss, log_p) in losses.iter().zip(log_probabilities(&hidden, &w, vocab, Some(&bias), &targets)) {
            assert!((loss + log_p).abs() < 1e-12);
        }
    }
}

#[test]
fn row_selection() {
    let mut source = Source::new(7);
    let rows = [4, 0, 3];
    let (x, d) = (source.reals(5 * 3), source.reals(3 * 3));
    check("gather", &x, &d, &scatter_rows(&d, 3, &rows, 5), |x| gather_rows(x, 3, &rows));
}
