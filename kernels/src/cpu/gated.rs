//! Gated activations, forward and backward.

use super::CpuBackend;
use super::buffers::Matrix;
use super::check::shape;
use super::exp::sigmoid;
use super::simd::vectorized;
use crate::contract::{GatedActivation, Result};

/// sqrt(2 / pi) and the cubic coefficient of the tanh approximation of GELU.
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;
/// Where the approximation has long saturated; keeps the cubic finite.
const GELU_SATURATED: f32 = 12.0;

/// `x * sigmoid(2 u(x))`, which is `x / 2 * (1 + tanh(u(x)))`: the gate's sigmoid and the slope of `2 u`.
#[inline(always)]
fn gelu_parts(x: f32) -> (f32, f32) {
    let x = if x > GELU_SATURATED { GELU_SATURATED } else { x };
    let x = if x < -GELU_SATURATED { -GELU_SATURATED } else { x };
    let square = x * x;
    let u = GELU_SCALE * x * (1.0 + GELU_CUBIC * square);
    let slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * square);
    (sigmoid(2.0 * u), 2.0 * slope)
}

vectorized! {
    fn silu_gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate) * up;
        }
    }

    fn gelu_gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * gelu_parts(gate).0 * up;
        }
    }

    fn silu_gate_backward(d_out: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        let n = d_out.len();
        let (gate, up, d_gate, d_up) = (&gate[..n], &up[..n], &mut d_gate[..n], &mut d_up[..n]);
        for i in 0..n {
            let s = sigmoid(gate[i]);
            d_up[i] = d_out[i] * (gate[i] * s);
            d_gate[i] = d_out[i] * up[i] * (s * (1.0 + gate[i] * (1.0 - s)));
        }
    }

    fn gelu_gate_backward(d_out: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        let n = d_out.len();
        let (gate, up, d_gate, d_up) = (&gate[..n], &up[..n], &mut d_gate[..n], &mut d_up[..n]);
        for i in 0..n {
            let (s, slope) = gelu_parts(gate[i]);
            d_up[i] = d_out[i] * (gate[i] * s);
            d_gate[i] = d_out[i] * up[i] * (s + gate[i] * (s * (1.0 - s)) * slope);
        }
    }
}

pub(crate) fn forward(
    b: &CpuBackend,
    gate: &Matrix,
    up: &Matrix,
    activation: GatedActivation,
    out: &mut Matrix,
) -> Result<()> {
    shape("gated", "up", up, gate.rows, gate.cols)?;
    shape("gated", "out", out, gate.rows, gate.cols)?;
    let kernel = match activation {
        GatedActivation::Silu => silu_gate,
        GatedActivation::GeluTanh => gelu_gate,
    };
    let piece = b.threads.rows_per_piece(gate.rows, gate.cols) * gate.cols;
    let items = out.data_mut().chunks_mut(piece).zip(gate.data().chunks(piece)).zip(up.data().chunks(piece)).collect();
    b.threads.for_each(items, |((out, gate), up): ((&mut [f32], &[f32]), &[f32])| kernel(gate, up, out));
    Ok(())
}

pub(crate) fn backward(
    b: &CpuBackend,
    d_out: &Matrix,
    gate: &Matrix,
    up: &Matrix,
    activation: GatedActivation,
    d_gate: &mut Matrix,
    d_up: &mut Matrix,
) -> Result<()> {
    let (rows, cols) = (gate.rows, gate.cols);
    for (name, matrix) in [("d_out", d_out), ("up", up), ("d_gate", &*d_gate), ("d_up", &*d_up)] {
        shape("gated_backward", name, matrix, rows, cols)?;
    }
    let kernel = match activation {
        GatedActivation::Silu => silu_gate_backward,
        GatedActivation::GeluTanh => gelu_gate_backward,
    };
    let piece = b.threads.rows_per_piece(rows, cols) * cols;
    let inputs = d_out.data().chunks(piece).zip(gate.data().chunks(piece)).zip(up.data().chunks(piece));
    let outputs = d_gate.data_mut().chunks_mut(piece).zip(d_up.data_mut().chunks_mut(piece));
    let items: Vec<_> = inputs.zip(outputs).collect();
    b.threads.for_each(items, |(((d_out, gate), up), (d_gate, d_up))| {
        kernel(d_out, gate, up, d_gate, d_up);
    });
    Ok(())
}
