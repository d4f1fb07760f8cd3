//! Frozen weights.

use super::CpuBackend;
use super::check::length;
use super::gemm::{MatRef, stretch};
use super::optimizer::round_all;
use super::simd::{dot, vectorized, wide, widened_dot};
use crate::contract::Result;
use crate::storage::Storage;
use half::bf16;
use std::ops::Range;
use std::sync::Arc;

vectorized! {
    /// `out = x`, which is exact.
    fn widen(x: &[bf16], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = wide(*x);
        }
    }

    /// `out = x * scale`.
    fn scaled_widen(x: &[bf16], scale: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = wide(*x) * scale;
        }
    }

    /// `out = x * scale`.
    fn scaled_copy(x: &[f32], scale: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x * scale;
        }
    }
}

/// A row-major matrix that never changes, as f32 or as bf16.
#[derive(Clone, Debug)]
pub struct Table {
    values: Values,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

#[derive(Clone, Debug)]
enum Values {
    F32(Arc<[f32]>),
    Bf16(Arc<[bf16]>),
}

impl Table {
    /// Rounds to the nearest, ties to even, where it stores bf16.
    pub(crate) fn new(
        operation: &'static str,
        values: &[f32],
        rows: usize,
        cols: usize,
        storage: Storage,
    ) -> Result<Self> {
        length(operation, "the weight", values.len(), rows * cols)?;
        super::check::ensure(rows > 0 && cols > 0, operation, || format!("the weight is [{rows}, {cols}]"))?;
        let values = match storage {
            Storage::F32 => Values::F32(values.into()),
            Storage::Bf16 => {
                let mut rounded = vec![bf16::ZERO; values.len()];
                round_all(values, &mut rounded);
                Values::Bf16(rounded.into())
            }
        };
        Ok(Self { values, rows, cols })
    }

    fn elements(&self, rows: Range<usize>) -> Range<usize> {
        rows.start * self.cols..rows.end * self.cols
    }

    /// `out = scale *` row number `row`.
    pub(crate) fn scaled_row(&self, row: usize, scale: f32, out: &mut [f32]) {
        let place = self.elements(row..row + 1);
        match &self.values {
            Values::F32(values) => scaled_copy(&values[place], scale, out),
            Values::Bf16(values) => scaled_widen(&values[place], scale, out),
        }
    }

    /// Inner product of `x` and row number `row`.
    pub(crate) fn dot_row(&self, row: usize, x: &[f32]) -> f32 {
        let place = self.elements(row..row + 1);
        match &self.values {
            Values::F32(values) => dot(x, &values[place]),
            Values::Bf16(values) => widened_dot(x, &values[place]),
        }
    }

    /// Hands all rows to `work` as f32, in order: at once where they are f32, and else in stretches, widened, which are such
    /// that bf16 gives the bits of the same values as f32.
    pub(crate) fn in_stretches(
        &self,
        b: &CpuBackend,
        rows_are: RowsAre,
        mut work: impl FnMut(Range<usize>, MatRef<'_>),
    ) -> Result<()> {
        let values = match &self.values {
            Values::F32(values) => {
                work(0..self.rows, MatRef::new(values, self.rows, self.cols));
                return Ok(());
            }
            Values::Bf16(values) => values,
        };
        let mut scratch = b.memory.take(widened(self.rows, self.cols), "widened weights")?;
        for rows in stretches(self.rows, rows_are) {
            let narrow = &values[self.elements(rows.clone())];
            let widened = &mut scratch.as_mut_slice()[..narrow.len()];
            let piece = b.threads.rows_per_piece(rows.len(), self.cols) * self.cols;
            let items = widened.chunks_mut(piece).zip(narrow.chunks(piece)).collect();
            b.threads.for_each(items, |(widened, narrow): (&mut [f32], &[bf16])| widen(narrow, widened));
            work(rows.clone(), MatRef::new(widened, rows.len(), self.cols));
        }
        Ok(())
    }
}

/// What the rows of a table are to a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowsAre {
    /// Columns of its result.
    Columns,
    /// What it sums over.
    Terms,
}

/// Columns of a product from which on it takes no path for small results, however many rows it has.
const NOT_SMALL: usize = 257;

/// Rows in stretches. Where they are terms, these are the stretches in which a product cuts its sums anyway. Where they are
/// columns, none is so short that it would be computed otherwise than as a part of the whole.
fn stretches(rows: usize, rows_are: RowsAre) -> impl Iterator<Item = Range<usize>> {
    let (length, mut first) = (stretch(rows), 0);
    std::iter::from_fn(move || {
        let mut end = (first + length).min(rows);
        if rows_are == RowsAre::Columns && rows - end < NOT_SMALL {
            end = rows;
        }
        let stretch = first..end;
        first = end;
        (!stretch.is_empty()).then_some(stretch)
    })
}

/// Elements that [`Table::in_stretches`] has at a time of a table of bf16, at most.
pub(crate) fn widened(rows: usize, cols: usize) -> usize {
    rows.min(stretch(rows) + NOT_SMALL) * cols
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
    pub(crate) fn new(weight: &[f32], out: usize, inp: usize, bias: Option<&[f32]>, storage: Storage) -> Result<Self> {
        let weight = Table::new("pack_linear", weight, out, inp, storage)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_tile_the_rows_and_none_of_columns_is_short() {
        for rows in (1..3000).chain([16_385, 49_152, 49_153, 262_208]) {
            for rows_are in [RowsAre::Columns, RowsAre::Terms] {
                let mut end = 0;
                for stretch in stretches(rows, rows_are) {
                    assert!(stretch.start == end && stretch.len() <= widened(rows, 1), "{rows}: {stretch:?}");
                    let whole = stretch == (0..rows);
                    assert!(whole || rows_are == RowsAre::Terms || stretch.len() >= NOT_SMALL, "{rows}: {stretch:?}");
                    end = stretch.end;
                }
                assert_eq!(end, rows);
            }
        }
    }
}
