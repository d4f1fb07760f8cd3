//! What is done to whole vectors of parameters: AdamW (Loshchilov and Hutter, 1711.05101), and sums of gradients.

use super::CpuBackend;
use super::buffers::Vector;
use super::check;
use super::simd::vectorized;
use crate::adamw::Factors;
use crate::contract::{AdamW, Result};
use half::bf16;

vectorized! {
    /// In f64 per element, each state rounded once.
    fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: Factors) {
        let n = p.len();
        let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let gradient = f64::from(g[i]) * f.gradient_scale;
            let first = f.beta1 * f64::from(m[i]) + (1.0 - f.beta1) * gradient;
            let second = f.beta2 * f64::from(v[i]) + (1.0 - f.beta2) * gradient * gradient;
            let denominator = second.sqrt() * f.root_correction + f.epsilon;
            m[i] = first as f32;
            v[i] = second as f32;
            p[i] = (f64::from(p[i]) * f.decay - f.step_size * first / denominator) as f32;
        }
    }

    fn add_product(x: &mut [f32], scale: f32, y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += scale * y;
        }
    }
}

pub(crate) fn adamw(
    b: &CpuBackend,
    parameters: &mut Vector,
    gradient: &Vector,
    first: &mut Vector,
    second: &mut Vector,
    settings: &AdamW,
) -> Result<()> {
    let len = parameters.len();
    check::adamw(settings, len, gradient.len(), first.len(), second.len())?;
    let factors = Factors::new(settings);
    let piece = b.threads.rows_per_piece(len, 1);
    let states = first.data_mut().chunks_mut(piece).zip(second.data_mut().chunks_mut(piece));
    let items: Vec<_> =
        parameters.data_mut().chunks_mut(piece).zip(gradient.data().chunks(piece)).zip(states).collect();
    b.threads.for_each(items, |((p, g), (m, v))| {
        update(p, g, m, v, factors);
    });
    Ok(())
}

pub(crate) fn add_scaled(b: &CpuBackend, x: &mut Vector, scale: f32, y: &Vector, first: usize) -> Result<()> {
    check::stretch("add_scaled", first, x.len(), y.len())?;
    let piece = b.threads.rows_per_piece(x.len(), 1);
    let items = x.data_mut().chunks_mut(piece).zip(y.data()[first..].chunks(piece)).collect();
    b.threads.for_each(items, |(x, y): (&mut [f32], &[f32])| add_product(x, scale, y));
    Ok(())
}

pub(crate) fn copy(from: &Vector, to: &mut Vector, first: usize) -> Result<()> {
    check::stretch("copy_reals", first, from.len(), to.len())?;
    to.data_mut()[first..first + from.len()].copy_from_slice(from.data());
    Ok(())
}

/// Each to the nearest bf16, ties to even.
pub(crate) fn round_all(from: &[f32], to: &mut [bf16]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = bf16::from_f32(from));
}
