//! Output head: cross-entropy, log-probabilities and logits.
//!
//! Logits exist for a chunk of rows at a time: a product by cuBLASLt in f32, one kernel that makes losses and the
//! gradient of the logits, and a product back. With f32 storage that gradient takes the place of the logits.

use super::blas::{Product, View};
use super::buffers::{IndexVector, Matrix, Vector};
use super::check::{length, shape};
use super::weights::FrozenLinear;
use super::{Arg, CudaBackend, Grid, Storage, linear};
use crate::contract::Result;

/// Threads of a block of cross_entropy.cu.
const THREADS: u32 = 1024;
/// Most bytes of logits and their gradient at a time (but never less than one row).
const SCRATCH_BYTES: usize = 64 << 20;

/// Most shared memory that cross_entropy.cu has besides the logits that it keeps, in bytes.
const STATIC_SHARED: usize = 1 << 10;

/// Words of a stretch of the product back.
const STRETCH: usize = 4096;

/// Rows of a chunk: a function of the vocabulary and the storage type alone.
pub(super) fn chunk_rows(vocab: usize, storage: Storage) -> usize {
    let gradient = match storage {
        Storage::F32 => 0,
        Storage::Bf16 => storage.bytes(),
    };
    let rows = (SCRATCH_BYTES / (vocab * (size_of::<f32>() + gradient))).max(1);
    if rows > 8 { rows / 8 * 8 } else { rows }
}

/// Bytes of what exists of logits at a time.
pub(super) struct Scratch {
    /// Rows of a chunk.
    rows: usize,
    pub(super) logits: usize,
    /// Of their gradient, where it is wanted and does not take their place.
    pub(super) gradients: Option<usize>,
}

impl Scratch {
    pub(super) fn new(rows: usize, vocab: usize, storage: Storage, gradient: bool) -> Self {
        let rows = chunk_rows(vocab, storage).min(rows);
        let gradients = (gradient && storage == Storage::Bf16).then(|| rows * vocab * storage.bytes());
        Self { rows, logits: rows * vocab * size_of::<f32>(), gradients }
    }
}

/// Logits of a row that a block keeps in `shared` bytes for the gradient: whole quads.
fn kept_logits(vocab: usize, shared: usize) -> usize {
    let room = shared.saturating_sub(STATIC_SHARED) / size_of::<f32>();
    vocab.next_multiple_of(4).min(room / 4 * 4)
}

/// Rows `first..first + count` of a matrix.
fn rows(b: &CudaBackend, matrix: &Matrix, first: usize, count: usize) -> View {
    let bytes = first * matrix.cols * b.storage().bytes();
    View { ptr: matrix.buffer.ptr() + bytes as u64, rows: count, ..matrix.view(b) }
}

/// `logits = hidden Wᵀ + bias`, in f32.
fn product_with_head(b: &CudaBackend, hidden: View, head: &FrozenLinear, logits: View) -> Result<()> {
    b.product(&linear::product(hidden, head.weight.view(b), head.bias_for(Storage::F32), logits))
}

/// `d_hidden = d_logits W`. Stored as f32, in stretches of the vocabulary that are added in order: the error of one
/// long sum would grow beyond f32's. Stored as bf16 it is far below the output's rounding, which happens once.
pub(super) fn products_back(d_logits: View, weight: View, d_hidden: View) -> impl Iterator<Item = Product> {
    let (vocab, storage) = (d_logits.cols, d_logits.storage);
    let stretch = match storage {
        Storage::F32 => STRETCH,
        Storage::Bf16 => vocab,
    };
    let after = move |ptr: u64, elements: usize| ptr + (elements * storage.bytes()) as u64;
    (0..vocab).step_by(stretch).map(move |first| {
        let count = stretch.min(vocab - first);
        let x = View { ptr: after(d_logits.ptr, first), cols: count, ..d_logits };
        let w = View { ptr: after(weight.ptr, first * weight.cols), rows: count, ..weight };
        linear::product_back(x, w, first > 0, d_hidden)
    })
}

pub(super) fn cross_entropy(
    b: &CudaBackend,
    hidden: &Matrix,
    head: &FrozenLinear,
    targets: &IndexVector,
    losses: &mut Vector,
    d_hidden: Option<&mut Matrix>,
) -> Result<()> {
    if let Some(d_hidden) = &d_hidden {
        shape("linear_cross_entropy", "d_hidden", d_hidden, hidden.rows, hidden.cols)?;
    }
    by_chunks("linear_cross_entropy", b, hidden, head, targets, losses, 1.0, d_hidden)
}

pub(super) fn log_probabilities(
    b: &CudaBackend,
    hidden: &Matrix,
    head: &FrozenLinear,
    targets: &IndexVector,
    out: &mut Vector,
) -> Result<()> {
    by_chunks("log_probabilities", b, hidden, head, targets, out, -1.0, None)
}

/// `out` receives `sign` times the losses.
#[allow(clippy::too_many_arguments)]
fn by_chunks(
    operation: &'static str,
    b: &CudaBackend,
    hidden: &Matrix,
    head: &FrozenLinear,
    targets: &IndexVector,
    out: &mut Vector,
    sign: f32,
    d_hidden: Option<&mut Matrix>,
) -> Result<()> {
    let vocab = head.out();
    shape(operation, "hidden", hidden, hidden.rows, head.inp())?;
    length(operation, "targets", targets.len, hidden.rows)?;
    length(operation, "the result", out.len(), hidden.rows)?;
    targets.below(operation, "targets", vocab)?;
    let Scratch { rows: chunk, logits, gradients } = Scratch::new(hidden.rows, vocab, b.storage(), d_hidden.is_some());
    let logits = b.scratch(logits, "logits")?;
    let narrow = gradients.map(|bytes| b.scratch(bytes, "gradients of logits")).transpose()?;
    let d_logits = narrow.as_ref().map_or(logits.ptr(), |narrow| narrow.ptr());
    let kept = if d_hidden.is_some() { kept_logits(vocab, b.device().shared_bytes()) } else { 0 };
    for first in (0..hidden.rows).step_by(chunk) {
        let count = chunk.min(hidden.rows - first);
        product_with_head(b, rows(b, hidden, first, count), head, View::new(logits.ptr(), count, vocab, Storage::F32))?;
        let args = [
            Arg::from(&logits),
            Arg::Ptr(targets.buffer.ptr() + (first * size_of::<u32>()) as u64),
            Arg::Ptr(out.at(first)),
            if d_hidden.is_some() { Arg::Ptr(d_logits) } else { Arg::NULL },
            (vocab as u32).into(),
            sign.into(),
            (kept as u32).into(),
        ];
        let grid = Grid::rows(count, THREADS).shared((kept * size_of::<f32>()) as u32);
        b.launch("cross_entropy", "cross_entropy", true, grid, &args)?;
        if let Some(d_hidden) = &d_hidden {
            let d_logits = View::new(d_logits, count, vocab, b.storage());
            let d_rows = rows(b, d_hidden, first, count);
            products_back(d_logits, head.weight.view(b), d_rows).try_for_each(|product| b.product(&product))?;
        }
    }
    Ok(())
}

pub(super) fn logits(b: &CudaBackend, hidden: &Matrix, head: &FrozenLinear, out: &mut Vector) -> Result<()> {
    shape("logits", "hidden", hidden, hidden.rows, head.inp())?;
    let vocab = head.out();
    length("logits", "out", out.len(), hidden.rows * vocab)?;
    // As many rows at a time as the loss takes: no product but those that the fingerprint has.
    let chunk = chunk_rows(vocab, b.storage());
    for first in (0..hidden.rows).step_by(chunk) {
        let count = chunk.min(hidden.rows - first);
        let to = View::new(out.at(first * vocab), count, vocab, Storage::F32);
        product_with_head(b, rows(b, hidden, first, count), head, to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_bounded() {
        for vocab in [1, 2, 1000, 49_152, 151_936, 262_144] {
            assert!((1..=SCRATCH_BYTES / vocab / 4).contains(&chunk_rows(vocab, Storage::F32)));
            assert!((1..=SCRATCH_BYTES / vocab / 6).contains(&chunk_rows(vocab, Storage::Bf16)));
        }
        assert_eq!(chunk_rows(100_000_000, Storage::F32), 1);
    }

    #[test]
    fn kept_logits_fit() {
        assert_eq!(kept_logits(129, 99 << 10), 132, "a ragged row, whole");
        assert_eq!(kept_logits(49_152, 227 << 10), 49_152);
        assert_eq!(kept_logits(128_256, 163 << 10) * 4 + STATIC_SHARED, 163 << 10);
        assert_eq!(kept_logits(1000, 0), 0);
    }
}
