//! Rotary embedding.

use super::CudaBackend;
use super::buffers::{Matrix, Packing};
use super::weights::RotaryTable;
use crate::KernelError;
use crate::contract::{Direction, Result};

pub(super) fn rotary(
    b: &CudaBackend,
    x: &mut Matrix,
    heads: usize,
    tables: &RotaryTable,
    packing: &Packing,
    direction: Direction,
) -> Result<()> {
    let _ = (b, x, heads, tables, packing, direction);
    Err(KernelError::Device("rotary is not built yet".into()))
}
