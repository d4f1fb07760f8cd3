//! Rotary position embedding, in place.

use super::CpuBackend;
use super::buffers::{Matrix, PackingTable};
use super::check::{ensure, length, shape};
use super::simd::vectorized;
use super::weights::RotaryTable;
use crate::contract::{Direction, Result};

vectorized! {
    /// All heads of one row; `sign` is -1 to rotate back.
    fn rotate_row(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in row.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                let (a, b, s) = (*low, *high, sign * sin);
                *low = a * cos - b * s;
                *high = b * cos + a * s;
            }
        }
    }
}

pub(crate) fn rotary(
    b: &CpuBackend,
    x: &mut Matrix,
    heads: usize,
    tables: &RotaryTable,
    packing: &PackingTable,
    direction: Direction,
) -> Result<()> {
    let (half, cols) = (tables.half, x.cols);
    length("rotary", "the packing", packing.tokens(), x.rows)?;
    shape("rotary", "x", x, x.rows, heads * 2 * half)?;
    let last = packing.positions.iter().max().map_or(0, |&position| position as usize + 1);
    ensure(last <= tables.positions(), "rotary", || {
        format!("position {} is beyond the tables' {} positions", last.saturating_sub(1), tables.positions())
    })?;
    let sign = match direction {
        Direction::Forward => 1.0,
        Direction::Backward => -1.0,
    };
    let piece = b.threads.rows_per_piece(x.rows, cols);
    let items = x.data_mut().chunks_mut(piece * cols).zip(packing.positions.chunks(piece)).collect();
    b.threads.for_each(items, |(rows, positions): (&mut [f32], &[u32])| {
        for (row, &position) in rows.chunks_exact_mut(cols).zip(positions) {
            let start = position as usize * half;
            rotate_row(row, &tables.cos[start..start + half], &tables.sin[start..start + half], sign);
        }
    });
    Ok(())
}
