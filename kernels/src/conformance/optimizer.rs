//! AdamW, sums of gradients and the norm.

use super::{Comparison, Source, ok, plain};
use crate::{AdamW, Backend, reference};

pub(super) fn compare<B: Backend>(b: &B) -> Vec<Comparison> {
    let mut source = Source::new(900);
    let mut all = Vec::new();
    for (len, weight_decay, gradient_scale) in
        [(1, 0.0, 1.0), (31, 0.01, 1.0), (1000, 0.1, 0.125), (100_001, 0.01, 0.7)]
    {
        let (mut p, mut p_want) = source.vector(b, len, 1.0);
        let (mut m, mut v) = (ok(b.reals(len)), ok(b.reals(len)));
        let (mut m_want, mut v_want) = (vec![0.0; len], vec![0.0; len]);
        for step in 1..=5 {
            let settings = AdamW {
                learning_rate: 1e-2 / step as f64,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay,
                step,
                gradient_scale,
            };
            let (gradient, g) = source.vector(b, len, 0.3);
            ok(b.adamw(&mut p, &gradient, &mut m, &mut v, &settings));
            for i in 0..len {
                (p_want[i], m_want[i], v_want[i]) = reference::adamw(p_want[i], g[i], m_want[i], v_want[i], &settings);
            }
        }
        for (name, got, want) in [("parameters", &p, p_want), ("first", &m, m_want), ("second", &v, v_want)] {
            all.push(Comparison::real(format!("adamw {name}, {len}"), ok(b.read_reals(got)), want, 8.0));
        }
        let ((mut sum, x), (y, y_values)) = (source.vector(b, len, 1.0), source.vector(b, len, 1.0));
        ok(b.add_scaled(&mut sum, 0.37, &y, 0));
        let want = x.iter().zip(&y_values).map(|(x, y)| x + f64::from(0.37_f32) * y).collect();
        all.push(Comparison::real(format!("add_scaled {len}"), ok(b.read_reals(&sum)), want, 2.0));
        parts(b, &mut all, (&x, &mut sum), (&y_values, &y));

        let (x, values) = source.vector(b, len, 3.0);
        let norm = ok(b.squared_norm(&x));
        let want: f64 = values.iter().map(|x| x * x).sum();
        assert!((norm - want).abs() <= 1e-12 * want, "squared_norm of {len}: {norm} {want}");
        // Compared as f32 with the others; the f64 check is above.
        all.push(Comparison::real(format!("squared_norm {len}"), vec![norm as f32], vec![want], 1.0));
    }
    all
}

/// A stretch of a vector is added to a part, and a part is copied over it.
fn parts<B: Backend>(
    b: &B,
    all: &mut Vec<Comparison>,
    (x, whole): (&[f64], &mut B::Reals),
    (y_values, y): (&[f64], &B::Reals),
) {
    let (first, end) = (x.len() / 3, x.len() - x.len() / 4);
    let start: Vec<f32> = x[..end - first].iter().map(|&x| x as f32).collect();
    let mut part = ok(b.upload_reals(&start));
    ok(b.add_scaled(&mut part, -1.5, y, first));
    let want: Vec<f64> = x.iter().zip(&y_values[first..end]).map(|(x, y)| x - 1.5 * y).collect();
    let got = ok(b.read_reals(&part));
    all.push(Comparison::real(format!("add_scaled {first}..{end}"), got.clone(), want, 2.0));

    let mut want = ok(b.read_reals(whole));
    ok(b.copy_reals(&part, whole, first));
    want[first..end].copy_from_slice(&got);
    assert!(ok(b.read_reals(whole)) == want, "copy_reals {first}..{end}");

    let mut halves = ok(b.halves(got.len()));
    assert!(ok(b.read_halves(&halves)) == vec![0.0; got.len()]);
    ok(b.narrow(&part, &mut halves));
    let rounded: Vec<f32> = got.iter().map(|&value| plain::round(value.into()) as f32).collect();
    assert!(ok(b.read_halves(&halves)) == rounded, "narrow {first}..{end}");
    ok(b.widen(&halves, whole, first));
    want[first..end].copy_from_slice(&rounded);
    assert!(ok(b.read_reals(whole)) == want, "widen {first}..{end}");
    ok(b.write_halves(&mut halves, &start));
    let rounded: Vec<f32> = start.iter().map(|&value| plain::round(value.into()) as f32).collect();
    assert!(ok(b.read_halves(&halves)) == rounded, "write_halves {first}..{end}");
}
