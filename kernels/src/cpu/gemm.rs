//! Matrix products, through the `gemm` crate.
//!
//! # Bits
//! Each element of a product must be the same sum in the same order whatever the number of threads and whatever the
//! caches. `gemm` 0.19 gives each element to one micro-kernel call per stretch of K and adds the stretches in order;
//! threads only share out tiles, and packing copies. What can change a bit is therefore the length of the stretch
//! (`kc`) and which of its paths a shape takes:
//! - `kernel_params` derives `kc` from the caches it probes, but never below `min(k, 512)`; for products up to 64 x 64
//!   it is `min(k, 512)`; the path for tiny outputs uses 1024. So a K of at most 512 is never cut, on any machine.
//!   [`product`] cuts longer ones itself, evenly, and accumulates.
//! - the paths for vectors, for K up to 2 and for tiny outputs are chosen by shape and strides alone.
//!
//! The instruction set (AVX-512, FMA, or neither) does change bits; [`description`] names it.

#![allow(unsafe_code)]

use gemm::Parallelism;

/// Version of the library: a test compares it with the lock file.
const VERSION: &str = "0.19.0";
/// Longest stretch of K that the library never cuts.
const DEPTH: usize = 512;

/// What a product does with what its target held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// Replaces it.
    Overwrite,
    /// Adds to it.
    Add,
}

/// A matrix within a slice, read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// Row-major and dense.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major, its rows `stride` elements apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(holds(data.len(), rows, cols, stride), "{rows} x {cols} by {stride} in {}", data.len());
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The transposed matrix.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// A row-major matrix within a slice, written.
#[derive(Debug)]
pub(crate) struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> MatMut<'a> {
    /// Dense.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Its rows `stride` elements apart.
    pub(crate) fn strided(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(holds(data.len(), rows, cols, stride), "{rows} x {cols} by {stride} in {}", data.len());
        Self { data, rows, cols, stride }
    }
}

fn holds(len: usize, rows: usize, cols: usize, stride: usize) -> bool {
    rows > 0 && cols > 0 && stride >= cols && (rows - 1) * stride + cols <= len
}

/// Stretches of K, of almost equal length: a function of `depth` alone.
pub(crate) fn stretch(depth: usize) -> usize {
    let pieces = depth.div_ceil(DEPTH);
    depth.div_ceil(pieces).next_multiple_of(16).min(DEPTH)
}

/// `c = alpha * a b`, or `c += alpha * a b`.
pub(crate) fn product(parallelism: Parallelism, c: MatMut<'_>, store: Store, alpha: f32, a: MatRef<'_>, b: MatRef<'_>) {
    assert!(a.cols == b.rows && c.rows == a.rows && c.cols == b.cols, "{c:?} = {a:?} * {b:?}");
    let length = stretch(a.cols);
    for start in (0..a.cols).step_by(length) {
        let depth = length.min(a.cols - start);
        let add = start > 0 || store == Store::Add;
        // SAFETY: `MatRef` and `MatMut` checked on construction that every (row, col) lies within their slices, the
        // shapes agree (asserted above), and [start, start + depth) lies within K. `c` is borrowed mutably, so it
        // overlaps neither operand. All strides are positive and fit isize, as slices do.
        unsafe {
            gemm::gemm(
                c.rows,
                c.cols,
                depth,
                c.data.as_mut_ptr(),
                1,
                c.stride as isize,
                add,
                a.data.as_ptr().add(start * a.col_stride),
                a.col_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr().add(start * b.row_stride),
                b.col_stride as isize,
                b.row_stride as isize,
                1.0_f32,
                alpha,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// The library, the instruction set it runs on here, and the stretch of K.
pub(crate) fn description() -> String {
    format!("gemm {VERSION} {} depth {DEPTH}", instruction_set())
}

/// The path that `gemm` takes on this machine (`gemm_def!` in gemm-common).
fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "avx512f";
        }
        if std::arch::is_x86_feature_detected!("fma") {
            return "fma";
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        if std::arch::is_aarch64_feature_detected!("neon") {
            return "neon";
        }
    }
    "scalar"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_locked_one() {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap();
        assert!(lock.contains(&format!("name = \"gemm\"\nversion = \"{VERSION}\"")));
    }

    #[test]
    fn stretches_are_even_and_never_too_long() {
        for depth in 1..5000 {
            let length = stretch(depth);
            assert!(length <= DEPTH && length.min(depth) * depth.div_ceil(length) >= depth);
            assert_eq!(depth.div_ceil(length), depth.div_ceil(DEPTH));
        }
        assert_eq!(stretch(576), 288);
    }
}
