//! Gated activations, forward and backward.

use super::CudaBackend;
use super::arguments::Grid;
use super::buffers::Matrix;
use super::check::shape;
use crate::contract::{GatedActivation, Result};

const FILE: &str = "gated";
const THREADS: u32 = 256;

/// How the kernels of an activation are called.
fn name(activation: GatedActivation) -> &'static str {
    match activation {
        GatedActivation::Silu => "silu_gate",
        GatedActivation::GeluTanh => "gelu_gate",
    }
}

/// A thread for each 16 bytes of `matrix`, and its elements.
fn grid(b: &CudaBackend, matrix: &Matrix) -> (Grid, u64) {
    let elements = matrix.rows * matrix.cols;
    (Grid::elements(elements.div_ceil(16 / b.storage().bytes()), THREADS), elements as u64)
}

pub(super) fn forward(
    b: &CudaBackend,
    gate: &Matrix,
    up: &Matrix,
    activation: GatedActivation,
    out: &mut Matrix,
) -> Result<()> {
    shape("gated", "up", up, gate.rows, gate.cols)?;
    shape("gated", "out", out, gate.rows, gate.cols)?;
    let (grid, elements) = grid(b, gate);
    b.launch(FILE, name(activation), true, grid, &[gate.into(), up.into(), out.into(), elements.into()])
}

pub(super) fn backward(
    b: &CudaBackend,
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
    let (grid, elements) = grid(b, gate);
    let args = [d_out.into(), gate.into(), up.into(), d_gate.into(), d_up.into(), elements.into()];
    b.launch(FILE, &format!("{}_backward", name(activation)), true, grid, &args)
}
