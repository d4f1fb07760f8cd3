//! What the backend holds: plain vectors with their shapes.

use super::{ReferenceBackend, widen};
use crate::PackedLayout;
use crate::check::{self, Shaped, attention_shape, ensure, length};
use crate::contract::{AttentionShape, Result};
use std::sync::Arc;

/// A row-major f64 matrix.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub(super) values: Vec<f64>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Matrix {
    /// The whole matrix, row-major, in f64.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }
}

impl Shaped for Matrix {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }
}

/// A frozen matrix.
#[derive(Clone, Debug)]
pub struct Table {
    pub(super) values: Arc<[f64]>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Table {
    pub(super) fn new(
        b: &ReferenceBackend,
        operation: &'static str,
        values: &[f32],
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        length(operation, "the weight", values.len(), rows * cols)?;
        ensure(rows > 0 && cols > 0, operation, || format!("the weight is [{rows}, {cols}]"))?;
        Ok(Self { values: b.stored(widen(values)).into(), rows, cols })
    }
}

/// A frozen linear layer: `weight: [out, in]`.
#[derive(Clone, Debug)]
pub struct FrozenLinear {
    pub(super) weight: Table,
    pub(super) bias: Option<Vec<f64>>,
}

impl FrozenLinear {
    pub(super) fn new(
        b: &ReferenceBackend,
        weight: &[f32],
        out: usize,
        inp: usize,
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        let weight = Table::new(b, "pack_linear", weight, out, inp)?;
        if let Some(bias) = bias {
            length("pack_linear", "the bias", bias.len(), out)?;
        }
        Ok(Self { weight, bias: bias.map(|bias| b.stored(widen(bias))) })
    }

    pub(super) fn out(&self) -> usize {
        self.weight.rows
    }

    pub(super) fn inp(&self) -> usize {
        self.weight.cols
    }
}

/// cos and sin of the rotary angles, `[positions, half]`.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    pub(super) cos: Vec<f64>,
    pub(super) sin: Vec<f64>,
    pub(super) half: usize,
}

impl RotaryTable {
    pub(super) fn new(cos: &[f32], sin: &[f32], half: usize) -> Result<Self> {
        length("upload_rotary", "sin", sin.len(), cos.len())?;
        ensure(half > 0 && cos.len().is_multiple_of(half), "upload_rotary", || {
            format!("{} angles do not make rows of {half}", cos.len())
        })?;
        Ok(Self { cos: widen(cos), sin: widen(sin), half })
    }

    pub(super) fn positions(&self) -> usize {
        self.cos.len() / self.half
    }
}

/// A layout, and the position of every row.
#[derive(Clone, Debug)]
pub struct Packing {
    pub(super) layout: PackedLayout,
    pub(super) positions: Vec<u32>,
}

impl Packing {
    pub(super) fn new(layout: &PackedLayout) -> Result<Self> {
        check::packing(layout, false)?;
        Ok(Self { layout: layout.clone(), positions: layout.positions() })
    }

    pub(super) fn tokens(&self) -> usize {
        self.positions.len()
    }
}

/// Keys and values of one sequence in one layer, as far as there are any.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(super) keys: Vec<f64>,
    pub(super) values: Vec<f64>,
    pub(super) cols: usize,
    pub(super) capacity: usize,
}

impl Cache {
    pub(super) fn new(capacity: usize, shape: &AttentionShape) -> Result<Self> {
        attention_shape("kv_cache", shape)?;
        Ok(Self { keys: Vec::new(), values: Vec::new(), cols: shape.kv_heads * shape.head_dim, capacity })
    }

    /// Tokens held.
    pub(super) fn len(&self) -> usize {
        self.keys.len() / self.cols
    }
}
