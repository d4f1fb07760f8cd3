//! The innermost loops: packed panels times packed panels.

/// Rows of a register tile.
pub(crate) const ROWS: usize = 16;
/// Columns of a register tile: with two vectors of eight a column, twelve of the sixteen AVX registers.
pub(crate) const COLS: usize = 6;

/// Sums of a register tile, column by column.
pub(crate) type Tile = [[f32; ROWS]; COLS];

/// Adds the product of two panels to a tile: the sum over k is a chain of fused multiply-adds, in order, that starts at
/// zero. Fused multiply-add is exactly rounded, so all versions give the same bits.
#[multiversion::multiversion(targets("x86_64+avx512f+fma+avx2", "x86_64+avx2+fma"))]
pub(crate) fn multiply_add(a: &[[f32; ROWS]], b: &[[f32; COLS]], tile: &mut Tile) {
    let mut sums: Tile = [[0.0; ROWS]; COLS];
    for (a, b) in a.iter().zip(b) {
        for (sums, &b) in sums.iter_mut().zip(b) {
            for (sum, &a) in sums.iter_mut().zip(a) {
                *sum = a.mul_add(b, *sum);
            }
        }
    }
    for (total, sum) in tile.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        *total += sum;
    }
}
