//! Operations that copy or add whole rows.

use super::CudaBackend;
use super::buffers::{IndexVector, Matrix};
use super::weights::Table;
use crate::KernelError;
use crate::contract::Result;

pub(super) fn embedding(b: &CudaBackend, table: &Table, ids: &IndexVector, scale: f32, out: &mut Matrix) -> Result<()> {
    let _ = (b, table, ids, scale, out);
    Err(KernelError::Device("rows is not built yet".into()))
}

pub(super) fn add(b: &CudaBackend, x: &mut Matrix, y: &Matrix) -> Result<()> {
    let _ = (b, x, y);
    Err(KernelError::Device("rows is not built yet".into()))
}

pub(super) fn gather(b: &CudaBackend, x: &Matrix, rows: &IndexVector, out: &mut Matrix) -> Result<()> {
    let _ = (b, x, rows, out);
    Err(KernelError::Device("rows is not built yet".into()))
}

pub(super) fn scatter(b: &CudaBackend, d_out: &Matrix, rows: &IndexVector, d_x: &mut Matrix) -> Result<()> {
    let _ = (b, d_out, rows, d_x);
    Err(KernelError::Device("rows is not built yet".into()))
}
