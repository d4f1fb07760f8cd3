//! Shape errors.

use super::buffers::Matrix;
use crate::KernelError;
use crate::contract::Result;

/// Fails with [`KernelError::Shape`] unless `holds`.
pub(crate) fn ensure(holds: bool, operation: &'static str, detail: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(KernelError::Shape { operation, detail: detail() }) }
}

/// The matrix has this shape.
pub(crate) fn shape(operation: &'static str, name: &str, matrix: &Matrix, rows: usize, cols: usize) -> Result<()> {
    ensure(matrix.rows == rows && matrix.cols == cols, operation, || {
        format!("{name} is [{}, {}], expected [{rows}, {cols}]", matrix.rows, matrix.cols)
    })
}

/// A length is what it should be.
pub(crate) fn length(operation: &'static str, name: &str, got: usize, expected: usize) -> Result<()> {
    ensure(got == expected, operation, || format!("{name} has {got} elements, expected {expected}"))
}

/// All indices are below `limit`.
pub(crate) fn below(operation: &'static str, name: &str, indices: &[u32], limit: usize) -> Result<()> {
    match indices.iter().find(|&&index| index as usize >= limit) {
        None => Ok(()),
        Some(index) => {
            Err(KernelError::Shape { operation, detail: format!("{name} holds {index}, which is not below {limit}") })
        }
    }
}
