//! Tokens on the device.

use crate::WorkerError;
use ballast_kernels::{Backend, PackedLayout};

/// The tokens of a micro-batch: packed sequences, one after the other.
pub struct Batch<B: Backend> {
    pub(super) tokens: usize,
    pub(super) ids: B::Indices,
    pub(super) packing: B::Packing,
    /// 0, 1, 2, ...: gathering them copies a matrix.
    pub(super) every_row: B::Indices,
}

impl<B: Backend> Batch<B> {
    /// Puts the tokens of all sequences of `layout` on the device.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(backend: &B, ids: &[u32], layout: &PackedLayout) -> Result<Self, WorkerError> {
        let every_row: Vec<u32> = (0..ids.len() as u32).collect();
        Ok(Self {
            tokens: ids.len(),
            ids: backend.upload_indices(ids)?,
            packing: backend.upload_packing(layout)?,
            every_row: backend.upload_indices(&every_row)?,
        })
    }

    /// Its packing, for dropout and rotary positions.
    pub fn packing(&self) -> &B::Packing {
        &self.packing
    }
}

/// Rows of a batch whose hidden states are wanted.
pub struct Rows<B: Backend> {
    pub(crate) count: usize,
    pub(super) indices: B::Indices,
}

impl<B: Backend> Rows<B> {
    /// Distinct rows.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(backend: &B, rows: &[u32]) -> Result<Self, WorkerError> {
        Ok(Self { count: rows.len(), indices: backend.upload_indices(rows)? })
    }
}
