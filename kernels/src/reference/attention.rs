//! Causal attention over packed sequences, with the whole row of scores in view.

use crate::AttentionShape;
use std::ops::Range;

/// The keys, as rows of the packed matrices, that row `t` of a sequence starting at row `start` sees.
fn visible(shape: &AttentionShape, start: usize, t: usize) -> Range<usize> {
    let first = shape.window.map_or(start, |window| (t + 1).saturating_sub(window).max(start));
    first..t + 1
}

/// Where head `head` of row `t` lies.
fn place(t: usize, heads: usize, head: usize, d: usize) -> Range<usize> {
    let start = (t * heads + head) * d;
    start..start + d
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(target: &mut [f64], factor: f64, x: &[f64]) {
    target.iter_mut().zip(x).for_each(|(target, x)| *target += factor * x);
}

/// Probabilities of one query over its visible keys, and the log-sum-exp of its scores.
fn probabilities(shape: &AttentionShape, q: &[f64], k: &[f64], kv: usize, keys: Range<usize>) -> (Vec<f64>, f64) {
    let scale = f64::from(shape.scale);
    let scores: Vec<f64> = keys.map(|key| scale * dot(q, &k[place(key, shape.kv_heads, kv, shape.head_dim)])).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum_exp = max + scores.iter().map(|score| (score - max).exp()).sum::<f64>().ln();
    (scores.iter().map(|score| (score - log_sum_exp).exp()).collect(), log_sum_exp)
}

/// Calls `f(row, head, key head, visible keys)` for every query.
fn for_each_query(shape: &AttentionShape, bounds: &[u32], mut f: impl FnMut(usize, usize, usize, Range<usize>)) {
    for sequence in bounds.windows(2) {
        for t in sequence[0] as usize..sequence[1] as usize {
            for head in 0..shape.heads {
                let kv = head / (shape.heads / shape.kv_heads);
                f(t, head, kv, visible(shape, sequence[0] as usize, t));
            }
        }
    }
}

/// `(out, log_sum_exp)` with `bounds` as in [`crate::PackedLayout::bounds`].
#[must_use]
pub fn attention(q: &[f64], k: &[f64], v: &[f64], bounds: &[u32], shape: &AttentionShape) -> (Vec<f64>, Vec<f64>) {
    let (heads, d) = (shape.heads, shape.head_dim);
    let mut out = vec![0.0; q.len()];
    let mut saved = vec![0.0; q.len() / d];
    for_each_query(shape, bounds, |t, head, kv, keys| {
        let here = place(t, heads, head, d);
        let (p, log_sum_exp) = probabilities(shape, &q[here.clone()], k, kv, keys.clone());
        saved[t * heads + head] = log_sum_exp;
        for (p, key) in p.iter().zip(keys) {
            add_scaled(&mut out[here.clone()], *p, &v[place(key, shape.kv_heads, kv, d)]);
        }
    });
    (out, saved)
}

/// What [`attention_backward`] gives.
#[derive(Clone, Debug)]
pub struct AttentionGradients {
    /// Of the queries.
    pub d_q: Vec<f64>,
    /// Of the keys.
    pub d_k: Vec<f64>,
    /// Of the values.
    pub d_v: Vec<f64>,
}

/// Gradients of [`attention`].
#[must_use]
pub fn attention_backward(
    d_out: &[f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
    bounds: &[u32],
    shape: &AttentionShape,
) -> AttentionGradients {
    let (heads, kv_heads, d, scale) = (shape.heads, shape.kv_heads, shape.head_dim, f64::from(shape.scale));
    let mut g = AttentionGradients { d_q: vec![0.0; q.len()], d_k: vec![0.0; k.len()], d_v: vec![0.0; v.len()] };
    for_each_query(shape, bounds, |t, head, kv, keys| {
        let here = place(t, heads, head, d);
        let (p, _) = probabilities(shape, &q[here.clone()], k, kv, keys.clone());
        let d_p: Vec<f64> =
            keys.clone().map(|key| dot(&d_out[here.clone()], &v[place(key, kv_heads, kv, d)])).collect();
        let mean = dot(&p, &d_p);
        for ((p, d_p), key) in p.iter().zip(&d_p).zip(keys) {
            let there = place(key, kv_heads, kv, d);
            let d_score = scale * p * (d_p - mean);
            add_scaled(&mut g.d_q[here.clone()], d_score, &k[there.clone()]);
            add_scaled(&mut g.d_k[there.clone()], d_score, &q[here.clone()]);
            add_scaled(&mut g.d_v[there], *p, &d_out[here.clone()]);
        }
    });
    g
}
