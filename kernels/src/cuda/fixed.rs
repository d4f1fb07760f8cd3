//! Gradients to fixed point and back.

use super::CudaBackend;
use super::buffers::{IntegerVector, Vector};
use crate::KernelError;
use crate::contract::{Result, Segment};

pub(super) fn accumulate(
    b: &CudaBackend,
    gradient: &Vector,
    segments: &[Segment],
    limit_bits: u32,
    sums: &mut IntegerVector,
    flags: &mut IntegerVector,
) -> Result<()> {
    let _ = (b, gradient, segments, limit_bits, sums, flags);
    Err(KernelError::Device("fixed is not built yet".into()))
}

pub(super) fn to_gradient(
    b: &CudaBackend,
    sums: &IntegerVector,
    segments: &[Segment],
    divisor: f64,
    gradient: &mut Vector,
) -> Result<()> {
    let _ = (b, sums, segments, divisor, gradient);
    Err(KernelError::Device("fixed is not built yet".into()))
}

pub(super) fn max_abs(b: &CudaBackend, vector: &Vector, segments: &[Segment]) -> Result<Vec<f32>> {
    let _ = (b, vector, segments);
    Err(KernelError::Device("fixed is not built yet".into()))
}

pub(super) fn squared_norm(b: &CudaBackend, vector: &Vector) -> Result<f64> {
    let _ = (b, vector);
    Err(KernelError::Device("fixed is not built yet".into()))
}
