//! What a straightforward bf16 implementation gives: each tensor that an unfused implementation would hold is rounded
//! to bf16 once, sums are exact. A backend that stores bf16 may be off by at most twice as much as this.

use crate::AttentionShape;
use crate::reference::{self, AttentionGradients, LinearGradients, LinearShape, Lora, Rounding};
use std::ops::Range;

/// The value, stored as bf16.
pub(super) fn round(value: f64) -> f64 {
    Rounding::Bf16.round(value)
}

/// All values, stored as bf16.
pub(super) fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().copied().map(round).collect()
}

/// `aᵀ b` for `a: [rows, m]` and `b: [rows, n]`.
fn transposed_product(a: &[f64], b: &[f64], m: usize, n: usize) -> Vec<f64> {
    let mut product = vec![0.0; m * n];
    for (a, b) in a.chunks_exact(m).zip(b.chunks_exact(n)) {
        for (product, a) in product.chunks_exact_mut(n).zip(a) {
            product.iter_mut().zip(b).for_each(|(product, b)| *product += a * b);
        }
    }
    product
}

fn zip_rounded(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(&a, &b)| round(f(a, b))).collect()
}

/// [`reference::linear`].
pub(super) fn linear(
    shape: LinearShape,
    x: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
    lora: Lora<'_>,
) -> (Vec<f64>, Vec<f64>) {
    let plain = |shape, x: &[f64], weight: &[f64], bias| rounded(&reference::linear(shape, x, weight, bias, None).0);
    let base = plain(shape, x, weight, bias);
    let masked = zip_rounded(x, lora.mask, |x, factor| x * factor);
    let down = plain(LinearShape { out: lora.rank, ..shape }, &masked, &rounded(lora.a), None);
    let up = plain(LinearShape { inp: lora.rank, ..shape }, &down, &rounded(lora.b), None);
    (zip_rounded(&base, &up, |base, up| base + round(lora.scaling * up)), down)
}

/// [`reference::linear_backward`].
pub(super) fn linear_backward(
    shape: LinearShape,
    d_y: &[f64],
    x: &[f64],
    weight: &[f64],
    lora: Lora<'_>,
) -> LinearGradients {
    let through =
        |shape, d_y: &[f64], weight: &[f64]| rounded(&reference::linear_backward(shape, d_y, x, weight, None).d_x);
    let (a, b) = (rounded(lora.a), rounded(lora.b));
    let (_, down) = linear(shape, x, weight, None, lora);
    let masked = zip_rounded(x, lora.mask, |x, factor| x * factor);
    let d_up: Vec<f64> = d_y.iter().map(|d_y| round(lora.scaling * d_y)).collect();
    let d_down = through(LinearShape { inp: lora.rank, ..shape }, &d_up, &b);
    let d_masked = through(LinearShape { out: lora.rank, ..shape }, &d_down, &a);
    let d_path = zip_rounded(&d_masked, lora.mask, |d, factor| d * factor);
    LinearGradients {
        d_x: zip_rounded(&through(shape, d_y, weight), &d_path, |base, path| base + path),
        d_a: rounded(&transposed_product(&d_down, &masked, lora.rank, shape.inp)),
        d_b: rounded(&transposed_product(&d_up, &down, shape.out, lora.rank)),
    }
}

/// A head's operands, as in [`reference::logits`].
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) hidden: &'a [f64],
    pub(super) weight: &'a [f64],
    pub(super) bias: Option<&'a [f64]>,
    pub(super) targets: &'a [u32],
}

impl Head<'_> {
    fn vocab(&self, inp: usize) -> usize {
        self.weight.len() / inp
    }

    /// Rounded logits.
    pub(super) fn logits(&self) -> Vec<f64> {
        let inp = self.hidden.len() / self.targets.len();
        rounded(&reference::logits(self.hidden, self.targets.len(), self.weight, self.vocab(inp), self.bias))
    }

    /// Losses, and the gradient of their sum.
    pub(super) fn cross_entropy(&self) -> (Vec<f64>, Vec<f64>) {
        let inp = self.hidden.len() / self.targets.len();
        let vocab = self.vocab(inp);
        let (mut losses, mut d_logits) = (Vec::new(), self.logits());
        for (row, &target) in d_logits.chunks_exact_mut(vocab).zip(self.targets) {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum_exp = max + row.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln();
            losses.push(log_sum_exp - row[target as usize]);
            row.iter_mut().for_each(|logit| *logit = round((*logit - log_sum_exp).exp()));
            row[target as usize] = round(row[target as usize] - 1.0);
        }
        let shape = LinearShape { rows: self.targets.len(), inp, out: vocab };
        (losses, rounded(&reference::linear_backward(shape, &d_logits, self.hidden, self.weight, None).d_x))
    }
}

/// Operands of attention, as in [`reference::attention`].
#[derive(Clone, Copy)]
pub(super) struct Attention<'a> {
    pub(super) q: &'a [f64],
    pub(super) k: &'a [f64],
    pub(super) v: &'a [f64],
    pub(super) bounds: &'a [u32],
    pub(super) shape: &'a AttentionShape,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(target: &mut [f64], factor: f64, x: &[f64]) {
    target.iter_mut().zip(x).for_each(|(target, x)| *target += factor * x);
}

impl Attention<'_> {
    /// Where head `head` of row `t` lies among `heads`.
    fn place(&self, t: usize, heads: usize, head: usize) -> Range<usize> {
        let start = (t * heads + head) * self.shape.head_dim;
        start..start + self.shape.head_dim
    }

    /// Calls `f(row, head, places of the visible keys, rounded probabilities, log-sum-exp)` for every query.
    fn for_each_query(&self, mut f: impl FnMut(usize, usize, &[Range<usize>], &[f64], f64)) {
        let shape = self.shape;
        for sequence in self.bounds.windows(2) {
            for t in sequence[0] as usize..sequence[1] as usize {
                let first = shape.window.map_or(0, |window| (t + 1).saturating_sub(window)).max(sequence[0] as usize);
                for head in 0..shape.heads {
                    let kv = head / (shape.heads / shape.kv_heads);
                    let keys: Vec<_> = (first..=t).map(|key| self.place(key, shape.kv_heads, kv)).collect();
                    let q = &self.q[self.place(t, shape.heads, head)];
                    let scores: Vec<f64> =
                        keys.iter().map(|key| round(f64::from(shape.scale) * dot(q, &self.k[key.clone()]))).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let log_sum_exp = max + scores.iter().map(|score| (score - max).exp()).sum::<f64>().ln();
                    let p: Vec<f64> = scores.iter().map(|score| round((score - log_sum_exp).exp())).collect();
                    f(t, head, &keys, &p, log_sum_exp);
                }
            }
        }
    }

    /// [`reference::attention`].
    pub(super) fn forward(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut out, mut saved) = (vec![0.0; self.q.len()], vec![0.0; self.q.len() / self.shape.head_dim]);
        self.for_each_query(|t, head, keys, p, log_sum_exp| {
            saved[t * self.shape.heads + head] = log_sum_exp;
            for (p, key) in p.iter().zip(keys) {
                add_scaled(&mut out[self.place(t, self.shape.heads, head)], *p, &self.v[key.clone()]);
            }
        });
        (rounded(&out), saved)
    }

    /// [`reference::attention_backward`].
    pub(super) fn backward(&self, d_out: &[f64]) -> AttentionGradients {
        let (mut d_q, mut d_k, mut d_v) = (vec![0.0; self.q.len()], vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        let scale = f64::from(self.shape.scale);
        self.for_each_query(|t, head, keys, p, _| {
            let here = self.place(t, self.shape.heads, head);
            let d_out = &d_out[here.clone()];
            let d_p: Vec<f64> = keys.iter().map(|key| round(dot(d_out, &self.v[key.clone()]))).collect();
            let mean = dot(p, &d_p);
            for ((p, d_p), key) in p.iter().zip(&d_p).zip(keys) {
                let d_score = scale * round(p * (d_p - mean));
                add_scaled(&mut d_q[here.clone()], d_score, &self.k[key.clone()]);
                add_scaled(&mut d_k[key.clone()], d_score, &self.q[here.clone()]);
                add_scaled(&mut d_v[key.clone()], *p, d_out);
            }
        });
        AttentionGradients { d_q: rounded(&d_q), d_k: rounded(&d_k), d_v: rounded(&d_v) }
    }
}
