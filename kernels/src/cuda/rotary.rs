//! Rotary position embedding, in place.

use super::CudaBackend;
use super::arguments::Grid;
use super::buffers::{Matrix, Packing};
use super::check::{ensure, length, shape};
use super::weights::RotaryTable;
use crate::contract::{Direction, Result};

const FILE: &str = "rotary";
/// Threads of a block, and of the warp that does a row.
const THREADS: u32 = 256;
const WARP: u32 = 32;
/// Elements of an access, where they divide half a head.
const PACK: usize = 4;

pub(super) fn rotary(
    b: &CudaBackend,
    x: &mut Matrix,
    heads: usize,
    tables: &RotaryTable,
    packing: &Packing,
    direction: Direction,
) -> Result<()> {
    let (rows, half) = (x.rows, tables.half);
    length("rotary", "the packing", packing.tokens(), rows)?;
    shape("rotary", "x", x, rows, heads * 2 * half)?;
    ensure(packing.positions_end <= tables.positions(), "rotary", || {
        let last = packing.positions_end.saturating_sub(1);
        format!("position {last} is beyond the tables' {} positions", tables.positions())
    })?;
    let sign: f32 = match direction {
        Direction::Forward => 1.0,
        Direction::Backward => -1.0,
    };
    // Lanes that share half a head.
    let accesses = if half.is_multiple_of(PACK) { half / PACK } else { half };
    let bits = accesses.next_power_of_two().ilog2().min(WARP.ilog2());
    let args = [
        x.into(),
        (&tables.cos).into(),
        (&tables.sin).into(),
        (&packing.positions).into(),
        sign.into(),
        (rows as u32).into(),
        (heads as u32).into(),
        (half as u32).into(),
        bits.into(),
    ];
    b.launch(FILE, "rotary", true, Grid::rows(rows.div_ceil((THREADS / WARP) as usize), THREADS), &args)
}
