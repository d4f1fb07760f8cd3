//! Frozen weights.

use super::check::length;
use super::gemm::MatRef;
use crate::contract::Result;
use std::sync::Arc;

/// A row-major matrix that never changes.
#[derive(Clone, Debug)]
pub struct Table {
    data: Arc<[f32]>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Table {
    pub(crate) fn new(operation: &'static str, data: &[f32], rows: usize, cols: usize) -> Result<Self> {
        length(operation, "the weight", data.len(), rows * cols)?;
        super::check::ensure(rows > 0 && cols > 0, operation, || format!("the weight is [{rows}, {cols}]"))?;
        Ok(Self { data: data.into(), rows, cols })
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }

    pub(crate) fn matrix(&self) -> MatRef<'_> {
        MatRef::new(&self.data, self.rows, self.cols)
    }
}

/// A frozen linear layer: `weight: [out, in]`.
///
/// One layout serves both directions: the product packs its tiles anyway, and a second copy would double the memory of
/// the model for a few percent.
#[derive(Debug)]
pub struct FrozenLinear {
    pub(crate) weight: Table,
    pub(crate) bias: Option<Vec<f32>>,
}

impl FrozenLinear {
    pub(crate) fn new(weight: &[f32], out: usize, inp: usize, bias: Option<&[f32]>) -> Result<Self> {
        let weight = Table::new("pack_linear", weight, out, inp)?;
        if let Some(bias) = bias {
            length("pack_linear", "the bias", bias.len(), out)?;
        }
        Ok(Self { weight, bias: bias.map(<[f32]>::to_vec) })
    }

    pub(crate) fn out(&self) -> usize {
        self.weight.rows
    }

    pub(crate) fn inp(&self) -> usize {
        self.weight.cols
    }
}

/// cos and sin of the rotary angles, `[positions, half]`.
#[derive(Debug)]
pub struct RotaryTable {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    pub(crate) half: usize,
}

impl RotaryTable {
    pub(crate) fn new(cos: &[f32], sin: &[f32], half: usize) -> Result<Self> {
        length("upload_rotary", "sin", sin.len(), cos.len())?;
        super::check::ensure(half > 0 && cos.len().is_multiple_of(half), "upload_rotary", || {
            format!("{} angles do not make rows of {half}", cos.len())
        })?;
        Ok(Self { cos: cos.to_vec(), sin: sin.to_vec(), half })
    }

    pub(crate) fn positions(&self) -> usize {
        self.cos.len() / self.half
    }
}
