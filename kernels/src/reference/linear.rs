//! The frozen linear layer with its low-rank path.

use crate::{PackedLayout, Philox};

/// Sizes of a linear layer's call.
#[derive(Clone, Copy, Debug)]
pub struct LinearShape {
    /// Rows of the input.
    pub rows: usize,
    /// Channels in.
    pub inp: usize,
    /// Channels out.
    pub out: usize,
}

/// A low-rank path.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// `[rank, in]`.
    pub a: &'a [f64],
    /// `[out, rank]`.
    pub b: &'a [f64],
    /// Rank.
    pub rank: usize,
    /// Factor on the path.
    pub scaling: f64,
    /// Factor on each element of the path's input, `[rows, in]`; all ones without dropout.
    pub mask: &'a [f64],
}

/// The factors of a dropout mask, `[tokens, channels]`: 0 or `1 / (1 - probability)`.
#[must_use]
pub fn dropout_mask(
    layout: &PackedLayout,
    channels: usize,
    probability: f32,
    seed: u64,
    step: u64,
    module: u32,
) -> Vec<f64> {
    let philox = Philox::dropout(seed, step);
    let probability = f64::from(probability);
    let mut mask = Vec::with_capacity(layout.tokens() * channels);
    for (sequence, bounds) in layout.bounds().windows(2).enumerate() {
        for offset in 0..bounds[1] - bounds[0] {
            let position = layout.first_positions()[sequence] + offset;
            for channel in 0..channels {
                let words = philox.mask((channel / 4) as u32, position, layout.samples()[sequence], module);
                let kept = f64::from(words[channel % 4]) >= probability * 2.0_f64.powi(32);
                mask.push(if kept { 1.0 / (1.0 - probability) } else { 0.0 });
            }
        }
    }
    mask
}

/// Row `i` of `a: [.., k]` times row `j` of `b: [.., k]`.
fn dot_rows(a: &[f64], i: usize, b: &[f64], j: usize, k: usize) -> f64 {
    (0..k).map(|x| a[i * k + x] * b[j * k + x]).sum()
}

/// `(y, down)`: `down = (mask x) Aᵀ`, `y = x Wᵀ + bias + scaling * down Bᵀ`.
#[must_use]
pub fn linear(
    shape: LinearShape,
    x: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
    lora: Option<Lora<'_>>,
) -> (Vec<f64>, Vec<f64>) {
    let LinearShape { rows, inp, out } = shape;
    let mut y = vec![0.0; rows * out];
    let mut down = Vec::new();
    for t in 0..rows {
        for o in 0..out {
            y[t * out + o] = dot_rows(x, t, weight, o, inp) + bias.map_or(0.0, |bias| bias[o]);
        }
    }
    if let Some(lora) = lora {
        let masked: Vec<f64> = x.iter().zip(lora.mask).map(|(x, factor)| x * factor).collect();
        for t in 0..rows {
            for r in 0..lora.rank {
                down.push(dot_rows(&masked, t, lora.a, r, inp));
            }
            for o in 0..out {
                y[t * out + o] += lora.scaling * dot_rows(&down, t, lora.b, o, lora.rank);
            }
        }
    }
    (y, down)
}

/// What [`linear_backward`] gives.
#[derive(Clone, Debug)]
pub struct LinearGradients {
    /// Of the input, `[rows, in]`.
    pub d_x: Vec<f64>,
    /// Of A, `[rank, in]`; empty without a path.
    pub d_a: Vec<f64>,
    /// Of B, `[out, rank]`; empty without a path.
    pub d_b: Vec<f64>,
}

/// Gradients of [`linear`].
#[must_use]
pub fn linear_backward(
    shape: LinearShape,
    d_y: &[f64],
    x: &[f64],
    weight: &[f64],
    lora: Option<Lora<'_>>,
) -> LinearGradients {
    let LinearShape { rows, inp, out } = shape;
    let mut d_x = vec![0.0; rows * inp];
    for t in 0..rows {
        for o in 0..out {
            for i in 0..inp {
                d_x[t * inp + i] += d_y[t * out + o] * weight[o * inp + i];
            }
        }
    }
    let Some(lora) = lora else { return LinearGradients { d_x, d_a: Vec::new(), d_b: Vec::new() } };
    let (mut d_a, mut d_b) = (vec![0.0; lora.rank * inp], vec![0.0; out * lora.rank]);
    for t in 0..rows {
        for r in 0..lora.rank {
            let down: f64 = (0..inp).map(|i| x[t * inp + i] * lora.mask[t * inp + i] * lora.a[r * inp + i]).sum();
            let mut d_down = 0.0;
            for o in 0..out {
                d_b[o * lora.rank + r] += lora.scaling * d_y[t * out + o] * down;
                d_down += lora.scaling * d_y[t * out + o] * lora.b[o * lora.rank + r];
            }
            for i in 0..inp {
                let factor = lora.mask[t * inp + i];
                d_a[r * inp + i] += d_down * x[t * inp + i] * factor;
                d_x[t * inp + i] += d_down * lora.a[r * inp + i] * factor;
            }
        }
    }
    LinearGradients { d_x, d_a, d_b }
}
