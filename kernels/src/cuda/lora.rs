//! The low-rank path of a linear layer: adds to `y`, which holds the product with the frozen weight; adds to `d_x`.

use super::CudaBackend;
use super::buffers::{Matrix, Vector};
use super::weights::FrozenLinear;
use crate::KernelError;
use crate::contract::{LoraPath, Result};

pub(super) fn forward(
    b: &CudaBackend,
    x: &Matrix,
    weight: &FrozenLinear,
    path: &LoraPath<'_, CudaBackend>,
    down: &mut Vector,
    y: &mut Matrix,
) -> Result<()> {
    let _ = (b, x, weight, path, down, y);
    Err(KernelError::Device("lora is not built yet".into()))
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    b: &CudaBackend,
    d_y: &Matrix,
    x: &Matrix,
    weight: &FrozenLinear,
    path: &LoraPath<'_, CudaBackend>,
    down: &Vector,
    d_parameters: &mut Vector,
    d_x: Option<&mut Matrix>,
) -> Result<()> {
    let _ = (b, d_y, x, weight, path, down, d_parameters, d_x);
    Err(KernelError::Device("lora is not built yet".into()))
}
