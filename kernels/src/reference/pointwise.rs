//! Operations on single rows and elements.

use crate::{Direction, GatedActivation, NormKind};

/// `out[t] = scale * table[ids[t]]`.
#[must_use]
pub fn embedding(table: &[f64], hidden: usize, ids: &[u32], scale: f64) -> Vec<f64> {
    gather_rows(table, hidden, ids).into_iter().map(|x| x * scale).collect()
}

/// `out[i] = x[rows[i]]`.
#[must_use]
pub fn gather_rows(x: &[f64], cols: usize, rows: &[u32]) -> Vec<f64> {
    rows.iter().flat_map(|&row| x[row as usize * cols..][..cols].iter().copied()).collect()
}

/// `d_x[rows[i]] += d_out[i]` on zeros, `count` rows.
#[must_use]
pub fn scatter_rows(d_out: &[f64], cols: usize, rows: &[u32], count: usize) -> Vec<f64> {
    let mut d_x = vec![0.0; count * cols];
    for (i, &row) in rows.iter().enumerate() {
        for c in 0..cols {
            d_x[row as usize * cols + c] += d_out[i * cols + c];
        }
    }
    d_x
}

fn norm_weight(weight: f64, kind: NormKind) -> f64 {
    match kind {
        NormKind::Plain => weight,
        NormKind::UnitOffset => 1.0 + weight,
    }
}

/// `(out, inv_rms)` over groups of `weight.len()` elements.
#[must_use]
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64, kind: NormKind) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut saved) = (Vec::new(), Vec::new());
    for group in x.chunks_exact(weight.len()) {
        let mean = group.iter().map(|x| x * x).sum::<f64>() / group.len() as f64;
        let inv_rms = 1.0 / (mean + eps).sqrt();
        saved.push(inv_rms);
        out.extend(group.iter().zip(weight).map(|(x, &w)| x * inv_rms * norm_weight(w, kind)));
    }
    (out, saved)
}

/// Gradient of [`rms_norm`] with respect to `x`, given the `inv_rms` that it gave.
#[must_use]
pub fn rms_norm_backward(d_out: &[f64], x: &[f64], weight: &[f64], kind: NormKind, inv_rms: &[f64]) -> Vec<f64> {
    let n = weight.len();
    let mut d_x = Vec::new();
    for ((d_out, x), inv_rms) in d_out.chunks_exact(n).zip(x.chunks_exact(n)).zip(inv_rms) {
        let g: Vec<f64> = d_out.iter().zip(weight).map(|(d, &w)| d * norm_weight(w, kind)).collect();
        let dot: f64 = g.iter().zip(x).map(|(g, x)| g * x).sum();
        d_x.extend(g.iter().zip(x).map(|(g, x)| inv_rms * g - inv_rms.powi(3) * x * dot / n as f64));
    }
    d_x
}

/// Rotates `heads` heads of each row by the angles of its position; `cos, sin: [positions, half]`.
#[must_use]
pub fn rotary(
    x: &[f64],
    heads: usize,
    cos: &[f64],
    sin: &[f64],
    half: usize,
    positions: &[u32],
    direction: Direction,
) -> Vec<f64> {
    let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
    let mut out = x.to_vec();
    for (t, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            for i in 0..half {
                let (c, s) = (cos[position as usize * half + i], sign * sin[position as usize * half + i]);
                let low = (t * heads + head) * 2 * half + i;
                out[low] = x[low] * c - x[low + half] * s;
                out[low + half] = x[low + half] * c + x[low] * s;
            }
        }
    }
    out
}

/// The activation and its derivative.
fn activate(x: f64, activation: GatedActivation) -> (f64, f64) {
    match activation {
        GatedActivation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s + x * s * (1.0 - s))
        }
        GatedActivation::GeluTanh => {
            let scale = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (scale * (x + 0.044_715 * x.powi(3))).tanh();
            let slope = scale * (1.0 + 3.0 * 0.044_715 * x * x);
            (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope)
        }
    }
}

/// `act(gate) * up`.
#[must_use]
pub fn gated(gate: &[f64], up: &[f64], activation: GatedActivation) -> Vec<f64> {
    gate.iter().zip(up).map(|(&gate, up)| activate(gate, activation).0 * up).collect()
}

/// `(d_gate, d_up)`.
#[must_use]
pub fn gated_backward(d_out: &[f64], gate: &[f64], up: &[f64], activation: GatedActivation) -> (Vec<f64>, Vec<f64>) {
    let each = d_out.iter().zip(gate).zip(up);
    each.map(|((d_out, &gate), up)| {
        let (value, slope) = activate(gate, activation);
        (d_out * up * slope, d_out * value)
    })
    .unzip()
}
