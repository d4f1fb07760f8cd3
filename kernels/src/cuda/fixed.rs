//! Gradients to fixed point and back, and the two reductions over flat vectors.

use super::buffers::{IntegerVector, Vector};
use super::check::{self, ensure, length};
use super::memory::Buffer;
use super::{Arg, CudaBackend, Grid};
use crate::contract::{Result, Segment};
use crate::free_list::rounded;
use std::sync::{Arc, Mutex, PoisonError};

/// Threads of a block of fixed.cu.
const THREADS: u32 = 256;
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
}

/// Tables made before: the same segments come back with every micro-batch, and change once a step.
#[derive(Debug, Default)]
pub(super) struct Tables {
    recent: Mutex<Vec<(Vec<Segment>, Arc<Pieces>)>>,
}

impl Tables {
    /// How many are remembered: sums, gradients and magnitudes may each come with segments of their own.
    const MOST: usize = 4;

    fn pieces(&self, b: &CudaBackend, segments: &[Segment]) -> Result<Arc<Pieces>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pieces)) = recent.iter().find(|(known, _)| known == segments) {
            return Ok(Arc::clone(pieces));
        }
        let table = cut(segments);
        let pieces = Arc::new(Pieces { count: table.len() / 4, table: b.upload(&table, "a table of segments")? });
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
    Tables::MOST * rounded(4 * pieces * size_of::<u32>())
}

/// The table of [`Pieces`].
fn cut(segments: &[Segment]) -> Vec<u32> {
    let mut table = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        for start in segment.range.clone().step_by(PIECE) {
            let elements = PIECE.min(segment.range.end - start);
            table.extend([start as u32, elements as u32, segment.exponent as u32, number as u32]);
        }
    }
    table
}

/// Checks the segments of a vector of `len` elements and finds their pieces.
fn pieces(operation: &'static str, b: &CudaBackend, segments: &[Segment], len: usize) -> Result<Arc<Pieces>> {
    check::segments(operation, segments, len)?;
    ensure(u32::try_from(len).is_ok(), operation, || format!("{len} elements, of which tables hold 32 bits"))?;
    b.tables.pieces(b, segments)
}

/// A block a piece.
fn launch(b: &CudaBackend, kernel: &str, pieces: &Pieces, args: &[Arg]) -> Result<()> {
    b.launch("fixed", kernel, false, Grid::rows(pieces.count, THREADS), args)
}

pub(super) fn accumulate(
    b: &CudaBackend,
    gradient: &Vector,
    segments: &[Segment],
    limit_bits: u32,
    sums: &mut IntegerVector,
    flags: &mut IntegerVector,
) -> Result<()> {
    let operation = "accumulate_fixed";
    length(operation, "sums", sums.len, gradient.len())?;
    length(operation, "flags", flags.len, segments.len())?;
    check::limit_bits(operation, limit_bits)?;
    let pieces = pieces(operation, b, segments, gradient.len())?;
    let args = [gradient.into(), (&pieces.table).into(), limit_bits.into(), sums.into(), flags.into()];
    launch(b, "fixed_accumulate", &pieces, &args)
}

pub(super) fn to_gradient(
    b: &CudaBackend,
    sums: &IntegerVector,
    segments: &[Segment],
    divisor: f64,
    gradient: &mut Vector,
) -> Result<()> {
    length("fixed_to_gradient", "sums", sums.len, gradient.len())?;
    let pieces = pieces("fixed_to_gradient", b, segments, gradient.len())?;
    launch(b, "fixed_to_gradient", &pieces, &[sums.into(), (&pieces.table).into(), divisor.into(), gradient.into()])
}

/// Infinity where a segment holds a NaN.
pub(super) fn max_abs(b: &CudaBackend, vector: &Vector, segments: &[Segment]) -> Result<Vec<f32>> {
    let pieces = pieces("max_abs", b, segments, vector.len())?;
    let mut largest = vec![0.0_f32; segments.len()];
    let found = b.zeros(size_of_val(&largest[..]), "the largest magnitudes")?;
    launch(b, "fixed_max_abs", &pieces, &[vector.into(), (&pieces.table).into(), (&found).into()])?;
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
        assert_eq!(cut(&segments), want.concat());
    }
}
