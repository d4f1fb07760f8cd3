//! The product itself: tiles of D, shared out among threads; each tile packs what it needs of A and B.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::{
    driver::Driver,
    elements::{Element, Kind, with_element},
    matmul::Shapes,
    micro_kernel::{COLS, ROWS, Tile, multiply_add},
};

/// Rows and columns of a tile of D, and the stretch of k that is packed and summed at once: panels of 256 and 480 KiB.
const TILE_ROWS: usize = 8 * ROWS;
const TILE_COLS: usize = 40 * COLS;
const DEPTH: usize = 512;
/// Multiply-adds below which starting threads costs more than it saves.
const SMALL: usize = 1 << 18;

/// A column-major matrix in device memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    pub(crate) address: u64,
    pub(crate) kind: Kind,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) leading: usize,
    pub(crate) stride: i64,
}

/// Memory lent for the time of the product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scratch {
    pub(crate) address: u64,
    pub(crate) bytes: usize,
}

/// A product with all that it needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) shapes: Shapes,
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    pub(crate) transpose_a: bool,
    pub(crate) transpose_b: bool,
    pub(crate) a: Matrix,
    pub(crate) b: Matrix,
    pub(crate) c: Option<Matrix>,
    pub(crate) d: Matrix,
    /// Address, and elements from a batch's bias to the next.
    pub(crate) bias: Option<(u64, i64)>,
    pub(crate) workspace: Scratch,
}

impl Matrix {
    /// Address of the matrix of a batch.
    fn batch(&self, batch: usize) -> u64 {
        self.address.wrapping_add_signed(self.stride * batch as i64 * self.kind.bytes() as i64)
    }

    /// Bytes from the first element of one matrix to its last.
    fn bytes(&self) -> usize {
        ((self.cols - 1) * self.leading + self.rows) * self.kind.bytes()
    }
}

/// The place of an element.
fn at<T>(base: u64, index: usize) -> *mut T {
    std::ptr::with_exposed_provenance_mut::<T>(base as usize).wrapping_add(index)
}

/// Where a tile of D begins.
#[derive(Clone, Copy)]
struct Corner {
    batch: usize,
    row: usize,
    col: usize,
}

impl Product {
    /// Checks the operands and multiplies. Called when the stream gets here.
    pub(crate) fn run(&self, driver: Driver) {
        if let Err(message) = self.check(driver) {
            driver.illegal_address(&format!("product {:?}: {message}", self.shapes));
            return;
        }
        // SAFETY: the range was checked just now, and the program lent it to this product.
        unsafe { at::<u8>(self.workspace.address, 0).write_bytes(0xFF, self.workspace.bytes) };
        let Shapes { m, n, k, batches } = self.shapes;
        let (down, across) = (m.div_ceil(TILE_ROWS), n.div_ceil(TILE_COLS));
        let tiles = down * across * batches;
        let next = AtomicUsize::new(0);
        let work = || {
            let mut packed = Packed::default();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= tiles {
                    return;
                }
                let (row, col) = (i % down * TILE_ROWS, i / down % across * TILE_COLS);
                self.tile(Corner { batch: i / down / across, row, col }, &mut packed);
            }
        };
        let helpers = if m * n * k * batches < SMALL { 0 } else { threads().min(tiles) - 1 };
        thread::scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(work);
            }
            work();
        });
    }

    fn check(&self, driver: Driver) -> Result<(), String> {
        let Shapes { m, batches, .. } = self.shapes;
        let matrices = [("A", Some(&self.a)), ("B", Some(&self.b)), ("C", self.c.as_ref()), ("D", Some(&self.d))];
        for (name, matrix) in matrices.into_iter().filter_map(|(name, matrix)| Some((name, matrix?))) {
            for address in (0..batches).map(|batch| matrix.batch(batch)) {
                if !driver.holds(address, matrix.bytes()) {
                    return Err(format!("{name} at {address:#x} is not within one allocation: {matrix:?}"));
                }
            }
        }
        if let Some((address, stride)) = self.bias {
            let size = self.d.kind.bytes();
            let last = address.wrapping_add_signed(stride * (batches as i64 - 1) * size as i64);
            if !address.is_multiple_of(size as u64) || [address, last].iter().any(|&at| !driver.holds(at, m * size)) {
                return Err(format!("bias at {address:#x} is not within one allocation"));
            }
        }
        let Scratch { address, bytes } = self.workspace;
        if bytes > 0 && !driver.holds(address, bytes) {
            return Err(format!("workspace at {address:#x} is not within one allocation"));
        }
        Ok(())
    }

    fn tile(&self, corner: Corner, packed: &mut Packed) {
        let Shapes { m, n, k, .. } = self.shapes;
        let (rows, cols) = (TILE_ROWS.min(m - corner.row), TILE_COLS.min(n - corner.col));
        let (down, across) = (rows.div_ceil(ROWS), cols.div_ceil(COLS));
        packed.sums.clear();
        packed.sums.resize(down * across, [[0.0; ROWS]; COLS]);
        for first in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - first);
            let a = Panel { matrix: &self.a, batch: corner.batch, across: self.transpose_a, first, depth };
            let b = Panel { matrix: &self.b, batch: corner.batch, across: !self.transpose_b, first, depth };
            with_element!(self.a.kind, pack::<_, ROWS>(&a, corner.row, rows, &mut packed.a));
            with_element!(self.b.kind, pack::<_, COLS>(&b, corner.col, cols, &mut packed.b));
            for (i, sums) in packed.sums.iter_mut().enumerate() {
                let (a, b) = (i % down * depth, i / down * depth);
                multiply_add(&packed.a[a..a + depth], &packed.b[b..b + depth], sums);
            }
        }
        with_element!(self.d.kind, finish(self, corner, (rows, cols), &packed.sums));
    }
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// A thread's packed operands and sums.
#[derive(Default)]
struct Packed {
    a: Vec<[f32; ROWS]>,
    b: Vec<[f32; COLS]>,
    sums: Vec<Tile>,
}

/// A stretch of k of one operand.
struct Panel<'a> {
    matrix: &'a Matrix,
    batch: usize,
    /// Whether k runs down the columns, so that neighbours in k are neighbours in memory.
    across: bool,
    first: usize,
    depth: usize,
}

/// Packs rows `start..start + count` of `op(A)` (or columns of `op(B)`) in groups of `WIDTH`, each k by k, padded with
/// zeros.
fn pack<T: Element, const WIDTH: usize>(panel: &Panel<'_>, start: usize, count: usize, packed: &mut Vec<[f32; WIDTH]>) {
    let &Panel { matrix, batch, across, first, depth } = panel;
    let base = matrix.batch(batch);
    packed.clear();
    packed.resize(count.div_ceil(WIDTH) * depth, [0.0; WIDTH]);
    for (group, packed) in packed.chunks_exact_mut(depth).enumerate() {
        let width = WIDTH.min(count - group * WIDTH);
        for lane in 0..width {
            let index = start + group * WIDTH + lane;
            let (origin, step) = if across {
                (index * matrix.leading + first, 1)
            } else {
                (first * matrix.leading + index, matrix.leading)
            };
            for (i, packed) in packed.iter_mut().enumerate() {
                // SAFETY: the element lies within the matrix, which is in the allocation table, and is aligned.
                packed[lane] = unsafe { at::<T>(base, origin + i * step).read() }.widen();
            }
        }
    }
}

/// Scales, adds C and bias in f32, and rounds once.
fn finish<T: Element>(product: &Product, corner: Corner, (rows, cols): (usize, usize), sums: &[Tile]) {
    let Product { alpha, beta, ref c, ref d, bias, .. } = *product;
    let Corner { batch, row, col } = corner;
    let down = rows.div_ceil(ROWS);
    for j in 0..cols {
        for i in 0..rows {
            let mut value = alpha * sums[j / COLS * down + i / ROWS][j % COLS][i % ROWS];
            if let Some(c) = c {
                // SAFETY: the element lies within C, which is in the allocation table.
                value += beta * unsafe { at::<T>(c.batch(batch), (col + j) * c.leading + row + i).read() }.widen();
            }
            if let Some((address, stride)) = bias {
                let base = address.wrapping_add_signed(stride * batch as i64 * size_of::<T>() as i64);
                // SAFETY: the bias has a checked element for each row of D.
                value += unsafe { at::<T>(base, row + i).read() }.widen();
            }
            // SAFETY: the element lies within D, and no other tile has it.
            unsafe { at::<T>(d.batch(batch), (col + j) * d.leading + row + i).write(T::round(value)) };
        }
    }
}
