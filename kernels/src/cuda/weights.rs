//! Frozen weights on the device.

use super::blas::Shape;
use super::buffers::Vector;
use super::check::{ensure, length};
use super::memory::Buffer;
use super::{CudaBackend, Storage};
use crate::contract::Result;
use std::sync::Arc;

/// A row-major matrix in the backend's storage type that never changes.
#[derive(Clone, Debug)]
pub struct Table {
    pub(super) data: Arc<Buffer>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Table {
    pub(super) fn new(
        b: &CudaBackend,
        operation: &'static str,
        values: &[f32],
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        length(operation, "the weight", values.len(), rows * cols)?;
        ensure(rows > 0 && cols > 0, operation, || format!("the weight is [{rows}, {cols}]"))?;
        Ok(Self { data: Arc::new(b.upload_stored(values, b.storage(), "a frozen weight")?), rows, cols })
    }
}

/// The bias of a frozen layer, as products take it: in the type of their output.
#[derive(Debug)]
pub(super) struct Bias {
    /// In f32.
    pub(super) exact: Vector,
    /// In the backend's storage type.
    pub(super) stored: Buffer,
}

/// A frozen linear layer: `weight: [out, in]`, row-major, which serves both directions.
#[derive(Debug)]
pub struct FrozenLinear {
    pub(super) weight: Table,
    pub(super) bias: Option<Bias>,
}

impl FrozenLinear {
    pub(super) fn new(b: &CudaBackend, weight: &[f32], out: usize, inp: usize, bias: Option<&[f32]>) -> Result<Self> {
        if let Some(bias) = bias {
            length("pack_linear", "the bias", bias.len(), out)?;
        }
        let weight = Table::new(b, "pack_linear", weight, out, inp)?;
        b.blas.remember(Shape { out, inp, bias: bias.is_some() });
        let bias = bias.map(|bias| Bias::new(b, bias)).transpose()?;
        Ok(Self { weight, bias })
    }

    pub(super) fn out(&self) -> usize {
        self.weight.rows
    }

    pub(super) fn inp(&self) -> usize {
        self.weight.cols
    }

    /// The bias for a product whose output is of type `output`.
    pub(super) fn bias_for(&self, output: Storage) -> Option<u64> {
        self.bias.as_ref().map(|bias| match output {
            Storage::F32 => bias.exact.buffer.ptr(),
            Storage::Bf16 => bias.stored.ptr(),
        })
    }
}

impl Bias {
    fn new(b: &CudaBackend, values: &[f32]) -> Result<Self> {
        let exact = Vector { len: values.len(), buffer: b.upload(values, "a bias")? };
        Ok(Self { exact, stored: b.upload_stored(values, b.storage(), "a bias")? })
    }
}

/// cos and sin of the rotary angles, `[positions, half]`, f32.
#[derive(Debug)]
pub struct RotaryTable {
    pub(super) cos: Vector,
    pub(super) sin: Vector,
    pub(super) half: usize,
}

impl RotaryTable {
    pub(super) fn new(b: &CudaBackend, cos: &[f32], sin: &[f32], half: usize) -> Result<Self> {
        length("upload_rotary", "sin", sin.len(), cos.len())?;
        ensure(half > 0 && cos.len().is_multiple_of(half), "upload_rotary", || {
            format!("{} angles do not make rows of {half}", cos.len())
        })?;
        let vector = |values: &[f32]| -> Result<Vector> {
            Ok(Vector { len: values.len(), buffer: b.upload(values, "rotary tables")? })
        };
        Ok(Self { cos: vector(cos)?, sin: vector(sin)?, half })
    }

    pub(super) fn positions(&self) -> usize {
        self.cos.len() / self.half
    }
}
