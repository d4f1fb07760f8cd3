//! Operations that copy or add whole rows.

use super::CpuBackend;
use super::buffers::{IndexVector, Matrix};
use super::check::{below, length, shape};
use super::simd::vectorized;
use super::weights::Table;
use crate::contract::Result;

vectorized! {
    fn add_into(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

pub(crate) fn embedding(b: &CpuBackend, table: &Table, ids: &IndexVector, scale: f32, out: &mut Matrix) -> Result<()> {
    let hidden = table.cols;
    shape("embedding", "out", out, ids.values.len(), hidden)?;
    below("embedding", "ids", &ids.values, table.rows)?;
    let piece = b.threads.rows_per_piece(out.rows, hidden);
    let items = out.data_mut().chunks_mut(piece * hidden).zip(ids.values.chunks(piece)).collect();
    b.threads.for_each(items, |(out, ids): (&mut [f32], &[u32])| {
        for (out, &id) in out.chunks_exact_mut(hidden).zip(ids) {
            table.scaled_row(id as usize, scale, out);
        }
    });
    Ok(())
}

pub(crate) fn add(b: &CpuBackend, x: &mut Matrix, y: &Matrix) -> Result<()> {
    shape("add", "y", y, x.rows, x.cols)?;
    let piece = b.threads.rows_per_piece(x.rows, x.cols) * x.cols;
    let items = x.data_mut().chunks_mut(piece).zip(y.data().chunks(piece)).collect();
    b.threads.for_each(items, |(x, y): (&mut [f32], &[f32])| add_into(x, y));
    Ok(())
}

pub(crate) fn gather(b: &CpuBackend, x: &Matrix, rows: &IndexVector, out: &mut Matrix) -> Result<()> {
    let cols = x.cols;
    shape("gather_rows", "out", out, rows.values.len(), cols)?;
    below("gather_rows", "rows", &rows.values, x.rows)?;
    let piece = b.threads.rows_per_piece(out.rows, cols);
    let items = out.data_mut().chunks_mut(piece * cols).zip(rows.values.chunks(piece)).collect();
    b.threads.for_each(items, |(out, rows): (&mut [f32], &[u32])| {
        for (out, &row) in out.chunks_exact_mut(cols).zip(rows) {
            out.copy_from_slice(&x.data()[row as usize * cols..][..cols]);
        }
    });
    Ok(())
}

/// One thread: the rows are few, and memory is the limit.
pub(crate) fn scatter(d_out: &Matrix, rows: &IndexVector, d_x: &mut Matrix) -> Result<()> {
    let cols = d_x.cols;
    length("scatter_rows", "rows", rows.values.len(), d_out.rows)?;
    length("scatter_rows", "a row of d_out", d_out.cols, cols)?;
    below("scatter_rows", "rows", &rows.values, d_x.rows)?;
    let d_x = d_x.data_mut();
    d_x.fill(0.0);
    for (row, d_out) in rows.values.iter().zip(d_out.data().chunks_exact(cols)) {
        d_x[*row as usize * cols..][..cols].copy_from_slice(d_out);
    }
    Ok(())
}
