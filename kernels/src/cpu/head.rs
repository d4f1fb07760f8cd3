//! Output head: cross-entropy, log-probabilities and logits.
//!
//! Logits exist for a chunk of rows at a time, which becomes its own gradient in place.

use super::CpuBackend;
use super::attention::{exponentials, row_max, scale};
use super::buffers::{IndexVector, Matrix, Vector};
use super::check::{below, length, shape};
use super::exp::ln;
use super::gemm::{MatMut, MatRef, Store, product};
use super::linear::{add_base_gradient, base};
use super::weights::{FrozenLinear, RowsAre};
use crate::contract::Result;

/// Most bytes of logits at a time (but never less than one row).
const SCRATCH_BYTES: usize = 32 << 20;
/// Rows of a chunk: a function of the vocabulary alone.
fn chunk_rows(vocab: usize) -> usize {
    let rows = (SCRATCH_BYTES / size_of::<f32>() / row_stride(vocab)).max(1);
    if rows > 8 { rows / 8 * 8 } else { rows }
}

/// Elements from one row of logits to the next. A line more than whole lines: vocabularies tend to be multiples of
/// large powers of two, and rows that far apart would share a few cache sets.
fn row_stride(vocab: usize) -> usize {
    vocab.next_multiple_of(16) + 16
}

/// Elements of the logits that exist at a time.
pub(crate) fn scratch(rows: usize, vocab: usize) -> usize {
    chunk_rows(vocab).min(rows) * row_stride(vocab)
}

/// What to make of the logits.
enum Wanted<'a> {
    /// Losses, and the gradient of their sum with respect to the hidden states.
    Losses(Option<&'a mut [f32]>),
    /// Log-probabilities of the targets.
    LogProbabilities,
}

pub(crate) fn cross_entropy(
    b: &CpuBackend,
    hidden: &Matrix,
    head: &FrozenLinear,
    targets: &IndexVector,
    losses: &mut Vector,
    d_hidden: Option<&mut Matrix>,
) -> Result<()> {
    if let Some(d_hidden) = &d_hidden {
        shape("linear_cross_entropy", "d_hidden", d_hidden, hidden.rows, hidden.cols)?;
    }
    let wanted = Wanted::Losses(d_hidden.map(Matrix::data_mut));
    by_chunks("linear_cross_entropy", b, hidden, head, targets, losses, wanted)
}

pub(crate) fn log_probabilities(
    b: &CpuBackend,
    hidden: &Matrix,
    head: &FrozenLinear,
    targets: &IndexVector,
    out: &mut Vector,
) -> Result<()> {
    by_chunks("log_probabilities", b, hidden, head, targets, out, Wanted::LogProbabilities)
}

fn by_chunks(
    operation: &'static str,
    b: &CpuBackend,
    hidden: &Matrix,
    head: &FrozenLinear,
    targets: &IndexVector,
    out: &mut Vector,
    mut wanted: Wanted<'_>,
) -> Result<()> {
    let (rows, inp, vocab) = (hidden.rows, head.inp(), head.out());
    shape(operation, "hidden", hidden, rows, inp)?;
    length(operation, "targets", targets.values.len(), rows)?;
    length(operation, "the result", out.len(), rows)?;
    below(operation, "targets", &targets.values, vocab)?;
    let chunk = chunk_rows(vocab).min(rows);
    let stride = row_stride(vocab);
    let mut logits = b.memory.take(scratch(rows, vocab), "logits")?;
    for first in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - first);
        let logits = &mut logits.as_mut_slice()[..count * stride];
        let hidden = MatRef::new(&hidden.data()[first * inp..(first + count) * inp], count, inp);
        product_with_head(b, hidden, count, head, logits, stride)?;
        let (want_gradient, sign) = match &wanted {
            Wanted::Losses(d_hidden) => (d_hidden.is_some(), 1.0),
            Wanted::LogProbabilities => (false, -1.0),
        };
        let items = logits
            .chunks_exact_mut(stride)
            .map(|row| &mut row[..vocab])
            .zip(&targets.values[first..first + count])
            .zip(&mut out.data_mut()[first..first + count])
            .collect();
        b.threads.for_each(items, |((logits, &target), out): ((&mut [f32], &u32), &mut f32)| {
            *out = (sign * negative_log_likelihood(logits, target as usize, want_gradient)) as f32;
        });
        if let Wanted::Losses(Some(d_hidden)) = &mut wanted {
            let d_hidden = &mut d_hidden[first * inp..(first + count) * inp];
            add_base_gradient(b, logits, (count, stride), head, Store::Overwrite, d_hidden)?;
        }
    }
    Ok(())
}

/// `hidden Wᵀ + bias`, to rows `stride` apart.
fn product_with_head(
    b: &CpuBackend,
    hidden: MatRef<'_>,
    rows: usize,
    head: &FrozenLinear,
    logits: &mut [f32],
    stride: usize,
) -> Result<()> {
    let vocab = head.out();
    let store = match &head.bias {
        None => Store::Overwrite,
        Some(bias) => {
            logits.chunks_exact_mut(stride).for_each(|row| row[..vocab].copy_from_slice(bias));
            Store::Add
        }
    };
    head.weight.in_stretches(b, RowsAre::Columns, |of_weight, weight| {
        b.threads.with_parallelism(|parallelism| {
            let logits = MatMut::strided(&mut logits[of_weight.start..], rows, of_weight.len(), stride);
            product(parallelism, logits, store, 1.0, hidden, weight.t());
        });
    })
}

/// `-log softmax(logits)[target]`. The logits become exponentials; with `gradient`, `softmax - one_hot(target)`.
///
/// The exponentials are summed in sixteen f32 lanes over the whole row, as torch's f32 log-softmax does on AVX-512.
/// That sum is low by about 9e-6 for a vocabulary of 49,152, and the gradient of confident rows feels it: with a better
/// sum the first-step gradients would be 2.6e-4 away from PEFT's instead of 3e-6.
fn negative_log_likelihood(logits: &mut [f32], target: usize, gradient: bool) -> f64 {
    let (max, logit) = (row_max(logits), logits[target]);
    let sum = f64::from(exponentials(logits, max));
    if gradient {
        scale(logits, (1.0 / sum) as f32);
        logits[target] -= 1.0;
    }
    f64::from(max) + ln(sum) - f64::from(logit)
}

pub(crate) fn logits(b: &CpuBackend, hidden: &Matrix, head: &FrozenLinear, out: &mut Vector) -> Result<()> {
    shape("logits", "hidden", hidden, hidden.rows, head.inp())?;
    length("logits", "out", out.len(), hidden.rows * head.out())?;
    base(b, hidden.data(), hidden.rows, head, out.data_mut())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_bounded() {
        for vocab in [1, 2, 1000, 49_152, 151_936, 262_144] {
            let rows = chunk_rows(vocab);
            assert!(rows >= 1 && rows * row_stride(vocab) * 4 <= SCRATCH_BYTES);
        }
        assert_eq!(chunk_rows(100_000_000), 1);
    }
}
