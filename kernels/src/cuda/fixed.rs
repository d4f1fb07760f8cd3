//! Gradients to fixed point and back, and the two reductions over flat vectors.

use super::buffers::{IntegerVector, Vector};
use super::check::{self, ensure, length};
use super::memory::Buffer;
use super::{Arg, CudaBackend, Grid};
use crate::contract::{Bucket, Result, Segment};
use crate::free_list::rounded;
use std::sync::{Arc, Mutex, PoisonError};

/// Threads of a block of fixed.cu.
const THREADS: u32 = 256;
/// Words of a piece in the table.
const WORDS: usize = 4;
/// Most elements of a piece: one block's work.
const PIECE: usize = 1 << 12;
/// Elements whose squares are summed by sixteen lanes. Part of the norm's definition, and the CPU's too.
const STRETCH: usize = 1 << 14;
/// Lanes of a stretch.
const LANES: usize = 16;

/// The pieces of a list of segments on the device: `{start, elements, exponent, number of the segment}`, u32 each.
#[derive(Debug)]
struct Pieces {
    table: Buffer,
    count: usize,
    /// For each segment the number of its first piece; then their number.
    first_of: Vec<usize>,
}

/// Tables made before: the same segments come back with every micro-batch, and change once a step.
#[derive(Debug, Default)]
pub(super) struct Tables {
    recent: Mutex<Vec<(Vec<Segment>, Arc<Pieces>)>>,
}

impl Tables {
    /// How many are remembered: a step's, and those of the step before.
    const MOST: usize = 4;

    fn pieces(&self, b: &CudaBackend, segments: &[Segment]) -> Result<Arc<Pieces>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pieces)) = recent.iter().find(|(known, _)| known == segments) {
            return Ok(Arc::clone(pieces));
        }
        let (table, first_of) = cut(segments);
        let count = table.len() / WORDS;
        let pieces = Arc::new(Pieces { count, table: b.upload(&table, "a table of segments")?, first_of });
        if recent.len() == Self::MOST {
            recent.remove(0);
        }
        recent.push((segments.to_vec(), Arc::clone(&pieces)));
        Ok(pieces)
    }
}

/// Bytes of the tables that are remembered, for so many segments of a vector of `elements` elements.
pub(super) fn tables_bytes(elements: usize, segments: usize) -> usize {
    let pieces = elements.div_ceil(PIECE) + segments;
    Tables::MOST * rounded(WORDS * pieces * size_of::<u32>())
}

/// The table of [`Pieces`], and each segment's first.
fn cut(segments: &[Segment]) -> (Vec<u32>, Vec<usize>) {
    let (mut table, mut first_of) = (Vec::new(), vec![0]);
    for (number, segment) in segments.iter().enumerate() {
        for start in segment.range.clone().step_by(PIECE) {
            let elements = PIECE.min(segment.range.end - start);
            table.extend([start as u32, elements as u32, segment.exponent as u32, number as u32]);
        }
        first_of.push(table.len() / WORDS);
    }
    (table, first_of)
}

/// The pieces of sound segments of a vector of `len` elements.
fn pieces(operation: &'static str, b: &CudaBackend, segments: &[Segment], len: usize) -> Result<Arc<Pieces>> {
    ensure(u32::try_from(len).is_ok(), operation, || format!("{len} elements, of which tables hold 32 bits"))?;
    b.tables.pieces(b, segments)
}

/// Where a sound bucket's pieces lie in the table, and how many they are.
fn of_bucket(pieces: &Pieces, bucket: &Bucket<'_>) -> (Arg, usize) {
    let (first, end) = (pieces.first_of[bucket.members.start], pieces.first_of[bucket.members.end]);
    (Arg::Ptr(pieces.table.ptr() + (first * WORDS * size_of::<u32>()) as u64), end - first)
}

/// A block a piece.
fn launch(b: &CudaBackend, kernel: &str, pieces: usize, args: &[Arg]) -> Result<()> {
    b.launch("fixed", kernel, false, Grid::rows(pieces, THREADS), args)
}

pub(super) fn accumulate(
    b: &CudaBackend,
    gradient: &Vector,
    bucket: &Bucket<'_>,
    limit_bits: u32,
    sums: &mut IntegerVector,
    flags: &mut IntegerVector,
) -> Result<()> {
    let operation = "accumulate_fixed";
    check::bucket(operation, bucket, gradient.len(), sums.len)?;
    length(operation, "flags", flags.len, bucket.segments.len())?;
    check::limit_bits(operation, limit_bits)?;
    let pieces = pieces(operation, b, bucket.segments, gradient.len())?;
    let ((table, count), first) = (of_bucket(&pieces, bucket), bucket.elements.start as u64);
    let args = [gradient.into(), table, limit_bits.into(), first.into(), sums.into(), flags.into()];
    launch(b, "fixed_accumulate", count, &args)
}

pub(super) fn to_gradient(
    b: &CudaBackend,
    sums: &IntegerVector,
    bucket: &Bucket<'_>,
    divisor: f64,
    gradient: &mut Vector,
) -> Result<()> {
    let operation = "fixed_to_gradient";
    check::bucket(operation, bucket, gradient.len(), sums.len)?;
    let pieces = pieces(operation, b, bucket.segments, gradient.len())?;
    let ((table, count), first) = (of_bucket(&pieces, bucket), bucket.elements.start as u64);
    launch(b, operation, count, &[sums.into(), table, first.into(), divisor.into(), gradient.into()])
}

/// Infinity where a segment holds a NaN.
pub(super) fn max_abs(b: &CudaBackend, vector: &Vector, segments: &[Segment]) -> Result<Vec<f32>> {
    check::segments("max_abs", segments, vector.len())?;
    let pieces = pieces("max_abs", b, segments, vector.len())?;
    let mut largest = vec![0.0_f32; segments.len()];
    let found = b.zeros(size_of_val(&largest[..]), "the largest magnitudes")?;
    launch(b, "fixed_max_abs", pieces.count, &[vector.into(), (&pieces.table).into(), (&found).into()])?;
    b.download(&found, &mut largest)?;
    Ok(largest)
}

/// The sums of the stretches are added here, from first to last.
pub(super) fn squared_norm(b: &CudaBackend, vector: &Vector) -> Result<f64> {
    let mut sums = vec![0.0_f64; vector.len().div_ceil(STRETCH)];
    let found = b.scratch(size_of_val(&sums[..]), "sums of squares")?;
    let args = [vector.into(), (vector.len() as u64).into(), (STRETCH as u32).into(), (&found).into()];
    b.launch("fixed", "fixed_squares", false, Grid::elements(sums.len() * LANES, THREADS), &args)?;
    b.download(&found, &mut sums)?;
    Ok(sums.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_their_segments() {
        let segments = [Segment { range: 3..3, exponent: 1 }, Segment { range: 5..5 + 2 * PIECE + 1, exponent: -7 }];
        let piece = PIECE as u32;
        let minus_seven = -7_i32 as u32;
        let want = [[5, piece, minus_seven, 1], [5 + piece, piece, minus_seven, 1], [5 + 2 * piece, 1, minus_seven, 1]];
        assert_eq!(cut(&segments), (want.concat(), vec![0, 0, 3]));
    }
}
