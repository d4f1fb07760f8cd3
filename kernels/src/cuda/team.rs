//! Teams: how many threads share a row, as `kernels/cuda/team.cuh` has it.

use super::Storage;
use super::arguments::Grid;

/// Threads of a block, which its teams divide.
pub(super) const THREADS: u32 = 256;
/// Accesses that a thread makes to a row, more or less, before the row gets more threads than a warp.
const ACCESSES: usize = 4;

/// `2^bits` threads do a row together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Team {
    pub(super) bits: u32,
}

impl Team {
    /// The team for rows of `cols` elements. An access is of 16 bytes, or of one element where those do not divide a
    /// row.
    pub(super) fn new(cols: usize, storage: Storage) -> Self {
        let width = 16 / storage.bytes();
        let accesses = if cols.is_multiple_of(width) { cols / width } else { cols };
        let lanes = |accesses: usize| accesses.next_power_of_two().ilog2();
        Self { bits: lanes(accesses).min(5).max(lanes(accesses.div_ceil(ACCESSES)).min(THREADS.ilog2())) }
    }

    /// Teams of a block.
    pub(super) fn in_block(self) -> usize {
        (THREADS >> self.bits) as usize
    }

    /// A team for each `rows_a_team` of `rows`.
    pub(super) fn grid(self, rows: usize, rows_a_team: usize) -> Grid {
        Grid::rows(rows.div_ceil(self.in_block() * rows_a_team), THREADS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn teams_fit_their_rows() {
        let bits = |cols, storage| Team::new(cols, storage).bits;
        assert_eq!(bits(1, Storage::F32), 0);
        assert_eq!(bits(64, Storage::Bf16), 3, "eight accesses of 16 bytes");
        assert_eq!(bits(31, Storage::F32), 5, "ragged: an element an access");
        assert_eq!(bits(1024, Storage::Bf16), 5);
        assert_eq!(bits(4096, Storage::Bf16), 7);
        assert_eq!(bits(100_000, Storage::F32), 8);
        assert_eq!(Team { bits: 5 }.grid(17, 1).blocks, [3, 1, 1]);
        assert_eq!(Team { bits: 5 }.grid(65, 8).blocks, [2, 1, 1]);
    }
}
