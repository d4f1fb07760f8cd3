//! AdamW (Loshchilov and Hutter, 1711.05101).

use super::CpuBackend;
use super::buffers::Vector;
use super::check::{ensure, length};
use super::simd::vectorized;
use crate::contract::{AdamW, Result};

/// The scalars of one update.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    decay: f64,
    beta1: f64,
    beta2: f64,
    step_size: f64,
    root_correction: f64,
    epsilon: f64,
    gradient_scale: f64,
}

impl Factors {
    fn new(settings: &AdamW) -> Self {
        Self {
            decay: 1.0 - settings.learning_rate * settings.weight_decay,
            beta1: settings.beta1,
            beta2: settings.beta2,
            step_size: settings.learning_rate / (1.0 - power(settings.beta1, settings.step)),
            root_correction: 1.0 / (1.0 - power(settings.beta2, settings.step)).sqrt(),
            epsilon: settings.epsilon,
            gradient_scale: settings.gradient_scale,
        }
    }
}

/// `base^exponent` by squaring: the standard library leaves its precision open.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

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
    for (name, vector) in [("gradient", gradient), ("first_moment", &*first), ("second_moment", &*second)] {
        length("adamw", name, vector.len(), len)?;
    }
    ensure(settings.step > 0, "adamw", || "updates are numbered from 1".into())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers() {
        assert_eq!(power(0.9, 0), 1.0);
        assert_eq!(power(0.5, 10), 1.0 / 1024.0);
        assert!((power(0.999, 12_345) - 0.999_f64.powf(12_345.0)).abs() < 1e-15);
    }
}
