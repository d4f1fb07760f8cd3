//! Plain matrix products, by cuBLASLt.
//!
//! cuBLASLt is column-major: a row-major matrix is its transpose there. So `Y = X Wᵀ` (row-major) is asked for as
//! `Yᵀ = W Xᵀ` with `A = W` (transposed back) and `B = X`, and `Y = X W` with `A = W` as it lies.
//!
//! Accumulation is in f32 and never in TF32. Which algorithm runs is settled once for each [`Key`], where the number of
//! tokens counts only as its bucket, by the library's own heuristic: a function of key, library and device, so equal
//! workers choose equally. Algorithms that reduce in the output's type or in place are excluded.

use super::device::Device;
use super::libraries::Library;
use super::{CudaBackend, Storage};
use crate::KernelError;
use crate::contract::Result;

/// Workspace that algorithms may use: what NVIDIA recommends for Hopper, and enough elsewhere.
const WORKSPACE: usize = 32 << 20;

/// A row-major matrix somewhere in device memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) ptr: u64,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Elements from a row to the next.
    pub(super) stride: usize,
    pub(super) storage: Storage,
}

impl View {
    /// Rows that follow each other without a gap.
    pub(super) fn new(ptr: u64, rows: usize, cols: usize, storage: Storage) -> Self {
        Self { ptr, rows, cols, stride: cols, storage }
    }
}

/// How a product uses its second operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Weight {
    /// `y [m, n] = x [m, k] wᵀ`, `w: [n, k]`.
    Transposed,
    /// `y [m, n] = x [m, k] w`, `w: [k, n]`.
    Plain,
}

/// What goes into a product besides its operands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    /// Add to what `y` holds.
    pub(super) add: bool,
    /// Device address of a vector `[n]` in the type of `y`, added to every row.
    pub(super) bias: Option<u64>,
}

/// cuBLASLt, with what it was asked before.
#[derive(Debug)]
pub(super) struct Blas {}

impl Blas {
    pub(super) fn new(_device: &Device) -> Result<Self> {
        Library::CublasLt.require()?;
        Ok(Self {})
    }
}

impl CudaBackend {
    /// One product; see [`Weight`] and [`Terms`]. `x` and `w` are of one type; `y` is of it too, or f32.
    pub(super) fn product(&self, x: &View, weight: Weight, w: &View, terms: Terms, y: &View) -> Result<()> {
        let _ = (x, weight, w, terms, y);
        Err(KernelError::Device("blas is not built yet".into()))
    }
}
