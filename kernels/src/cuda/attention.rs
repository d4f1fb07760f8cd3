//! Attention.

use super::CudaBackend;
use super::buffers::{Cache, Matrix, Packing, Vector};
use crate::KernelError;
use crate::contract::{AttentionShape, Result};

#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    b: &CudaBackend,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    packing: &Packing,
    shape: &AttentionShape,
    out: &mut Matrix,
    log_sum_exp: &mut Vector,
) -> Result<()> {
    let _ = (b, q, k, v, packing, shape, out, log_sum_exp);
    Err(KernelError::Device("attention is not built yet".into()))
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    b: &CudaBackend,
    d_out: &Matrix,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    out: &Matrix,
    log_sum_exp: &Vector,
    packing: &Packing,
    shape: &AttentionShape,
    d_q: &mut Matrix,
    d_k: &mut Matrix,
    d_v: &mut Matrix,
) -> Result<()> {
    let _ = (b, d_out, q, k, v, out, log_sum_exp, packing, shape, d_q, d_k, d_v);
    Err(KernelError::Device("attention is not built yet".into()))
}

pub(super) fn cached(
    b: &CudaBackend,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    cache: &mut Cache,
    shape: &AttentionShape,
    out: &mut Matrix,
) -> Result<()> {
    let _ = (b, q, k, v, cache, shape, out);
    Err(KernelError::Device("attention is not built yet".into()))
}
