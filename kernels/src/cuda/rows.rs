//! Operations that copy or add whole rows.

use super::CudaBackend;
use super::arguments::Grid;
use super::buffers::{IndexVector, Matrix};
use super::check::{length, shape};
use super::team::{THREADS, Team};
use super::weights::Table;
use crate::contract::Result;

const FILE: &str = "rows";

pub(super) fn embedding(b: &CudaBackend, table: &Table, ids: &IndexVector, scale: f32, out: &mut Matrix) -> Result<()> {
    shape("embedding", "out", out, ids.len, table.cols)?;
    ids.below("embedding", "ids", table.rows)?;
    scaled_gather(b, table.data.ptr(), ids, scale, out)
}

pub(super) fn gather(b: &CudaBackend, x: &Matrix, rows: &IndexVector, out: &mut Matrix) -> Result<()> {
    shape("gather_rows", "out", out, rows.len, x.cols)?;
    rows.below("gather_rows", "rows", x.rows)?;
    scaled_gather(b, x.buffer.ptr(), rows, 1.0, out)
}

/// `out[i] = scale * table[rows[i]]`.
fn scaled_gather(b: &CudaBackend, table: u64, rows: &IndexVector, scale: f32, out: &mut Matrix) -> Result<()> {
    let (count, cols) = (out.rows, out.cols);
    let team = Team::new(cols, b.storage());
    let args = [
        table.into(),
        rows.into(),
        scale.into(),
        out.into(),
        (count as u32).into(),
        (cols as u32).into(),
        team.bits.into(),
    ];
    b.launch(FILE, "gather_rows", true, team.grid(count, 1), &args)
}

/// Bytes of the inverse of row numbers, of a matrix of `rows` rows.
pub(super) fn inverse_bytes(rows: usize) -> usize {
    rows * size_of::<u32>()
}

/// By the inverse of `rows`, so that each row of `d_x` is written once.
pub(super) fn scatter(b: &CudaBackend, d_out: &Matrix, rows: &IndexVector, d_x: &mut Matrix) -> Result<()> {
    let (total, cols) = (d_x.rows, d_x.cols);
    length("scatter_rows", "rows", rows.len, d_out.rows)?;
    length("scatter_rows", "a row of d_out", d_out.cols, cols)?;
    rows.below("scatter_rows", "rows", total)?;
    let inverse = b.zeros(inverse_bytes(total), "the inverse of row numbers")?;
    let args = [rows.into(), (&inverse).into(), (rows.len as u32).into()];
    b.launch(FILE, "invert_rows", false, Grid::elements(rows.len, THREADS), &args)?;
    let team = Team::new(cols, b.storage());
    let args =
        [d_out.into(), (&inverse).into(), d_x.into(), (total as u32).into(), (cols as u32).into(), team.bits.into()];
    b.launch(FILE, "scatter_rows", true, team.grid(total, 1), &args)
}

pub(super) fn add(b: &CudaBackend, x: &mut Matrix, y: &Matrix) -> Result<()> {
    shape("add", "y", y, x.rows, x.cols)?;
    let elements = x.rows * x.cols;
    let packs = elements.div_ceil(16 / b.storage().bytes());
    b.launch(FILE, "add", true, Grid::elements(packs, THREADS), &[x.into(), y.into(), (elements as u64).into()])
}
