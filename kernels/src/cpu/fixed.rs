//! Gradients to fixed point and back.

use super::CpuBackend;
use super::buffers::{IntegerVector, Vector};
use super::check::{self, length};
use super::simd::{LANES, vectorized};
use crate::contract::{Bucket, FLAG_NOT_FINITE, Result, Segment};

/// Elements of a piece of work.
const PIECE: usize = 1 << 14;

vectorized! {
    /// Adds `round(g * scale)` to the sums; returns the largest magnitude before rounding, or infinity for a NaN.
    /// `scale` is a power of two, so the product is exact and rounding happens once.
    fn add_rounded(gradient: &[f32], scale: f64, sums: &mut [i64]) -> f64 {
        let mut largest = [0.0_f64; LANES];
        let mut add = |gradient: f32, sum: &mut i64, lane: usize| {
            let value = f64::from(gradient) * scale;
            let magnitude = if value.is_nan() { f64::INFINITY } else { value.abs() };
            largest[lane] = if magnitude > largest[lane] { magnitude } else { largest[lane] };
            *sum = sum.wrapping_add(value.round_ties_even() as i64);
        };
        let (gradients, gradient_rest) = gradient.as_chunks::<LANES>();
        let (sums, sum_rest) = sums.as_chunks_mut::<LANES>();
        for (gradients, sums) in gradients.iter().zip(sums) {
            for lane in 0..LANES {
                add(gradients[lane], &mut sums[lane], lane);
            }
        }
        for (lane, (gradient, sum)) in gradient_rest.iter().zip(sum_rest).enumerate() {
            add(*gradient, sum, lane);
        }
        largest.iter().fold(0.0, |a, &b| if b > a { b } else { a })
    }

    fn to_floats(sums: &[i64], scale: f64, divisor: f64, out: &mut [f32]) {
        for (out, &sum) in out.iter_mut().zip(sums) {
            *out = (sum as f64 * scale / divisor) as f32;
        }
    }

    fn largest(values: &[f32]) -> f32 {
        let mut lanes = [0.0_f32; LANES];
        for block in values.chunks(LANES) {
            for (lane, value) in lanes.iter_mut().zip(block) {
                let magnitude = if value.is_nan() { f32::INFINITY } else { value.abs() };
                *lane = if magnitude > *lane { magnitude } else { *lane };
            }
        }
        lanes.iter().fold(0.0, |a, &b| if b > a { b } else { a })
    }

    fn squares(values: &[f32]) -> f64 {
        let mut lanes = [0.0_f64; LANES];
        for block in values.chunks(LANES) {
            for (lane, &value) in lanes.iter_mut().zip(block) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        lanes.iter().sum()
    }
}

/// `2^exponent`, exactly.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// By how many powers of two a magnitude exceeds `2^limit_bits` once rounded.
fn flag(largest: f64, limit_bits: u32) -> i64 {
    if largest.is_infinite() {
        return FLAG_NOT_FINITE;
    }
    if largest.round_ties_even() <= power_of_two(limit_bits as i32) {
        return 0;
    }
    // The exponent of the next power of two not below `largest`, which is a normal number here.
    let bits = largest.to_bits();
    let floor = (bits >> 52) as i64 - 1023;
    let ceil = if bits & ((1 << 52) - 1) == 0 { floor } else { floor + 1 };
    ceil - i64::from(limit_bits)
}

/// Cuts `data`, the elements of a flat vector from `position` on, into the pieces of these segments, each with its segment's
/// number among them and its offset in the flat vector.
fn pieces<'a, T>(mut data: &'a mut [T], mut position: usize, segments: &[Segment]) -> Vec<(usize, usize, &'a mut [T])> {
    let mut pieces = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        data = &mut data[segment.range.start - position..];
        position = segment.range.start;
        while position < segment.range.end {
            let piece;
            (piece, data) = data.split_at_mut(PIECE.min(segment.range.end - position));
            pieces.push((number, position, &mut *piece));
            position += PIECE.min(segment.range.end - position);
        }
    }
    pieces
}

/// Shares out small pieces in batches.
fn batches<T>(pieces: Vec<T>, threads: usize) -> Vec<Vec<T>> {
    let each = pieces.len().div_ceil(4 * threads).max(1);
    let mut batches = Vec::new();
    let mut pieces = pieces.into_iter().peekable();
    while pieces.peek().is_some() {
        batches.push(pieces.by_ref().take(each).collect());
    }
    batches
}

pub(crate) fn accumulate(
    b: &CpuBackend,
    gradient: &Vector,
    bucket: &Bucket<'_>,
    limit_bits: u32,
    sums: &mut IntegerVector,
    flags: &mut IntegerVector,
) -> Result<()> {
    let operation = "accumulate_fixed";
    check::bucket(operation, bucket, gradient.len(), sums.values.len())?;
    length(operation, "flags", flags.values.len(), bucket.segments.len())?;
    check::limit_bits(operation, limit_bits)?;
    let segments = &bucket.segments[bucket.members.clone()];
    let flags = &mut flags.values[bucket.members.clone()];
    let pieces = pieces(&mut sums.values, bucket.elements.start, segments);
    let mut met: Vec<(usize, f64)> = pieces.iter().map(|(number, _, _)| (*number, 0.0)).collect();
    let work = batches(pieces.into_iter().zip(&mut met).collect(), b.threads.count());
    b.threads.for_each(work, |batch| {
        for ((number, start, sums), met) in batch {
            let gradient = &gradient.data()[start..start + sums.len()];
            met.1 = add_rounded(gradient, power_of_two(segments[number].exponent), sums);
        }
    });
    for (number, largest) in met {
        let slot = &mut flags[number];
        *slot = (*slot).max(flag(largest, limit_bits));
    }
    Ok(())
}

pub(crate) fn to_gradient(
    b: &CpuBackend,
    sums: &IntegerVector,
    bucket: &Bucket<'_>,
    divisor: f64,
    gradient: &mut Vector,
) -> Result<()> {
    check::bucket("fixed_to_gradient", bucket, gradient.len(), sums.values.len())?;
    let (segments, first) = (&bucket.segments[bucket.members.clone()], bucket.elements.start);
    let work = batches(pieces(gradient.data_mut(), 0, segments), b.threads.count());
    b.threads.for_each(work, |batch: Vec<(usize, usize, &mut [f32])>| {
        for (number, start, out) in batch {
            let sums = &sums.values[start - first..][..out.len()];
            to_floats(sums, power_of_two(-segments[number].exponent), divisor, out);
        }
    });
    Ok(())
}

/// Infinity where a segment holds a NaN.
pub(crate) fn max_abs(vector: &Vector, segments: &[Segment]) -> Result<Vec<f32>> {
    check::segments("max_abs", segments, vector.len())?;
    Ok(segments.iter().map(|segment| largest(&vector.data()[segment.range.clone()])).collect())
}

/// Pieces of fixed length, each by lanes, added in order.
pub(crate) fn squared_norm(b: &CpuBackend, vector: &Vector) -> f64 {
    let mut sums = vec![0.0; vector.len().div_ceil(PIECE)];
    let work = batches(sums.iter_mut().zip(vector.data().chunks(PIECE)).collect(), b.threads.count());
    b.threads.for_each(work, |batch: Vec<(&mut f64, &[f32])>| {
        for (sum, values) in batch {
            *sum = squares(values);
        }
    });
    sums.iter().sum()
}
