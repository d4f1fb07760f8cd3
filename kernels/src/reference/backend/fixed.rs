//! Fixed point and the optimizer.

use crate::check::{self, length};
use crate::contract::{AdamW, Bucket, Result, Segment};
use crate::reference;

/// What is rounded to fixed point is the f32 of the contract.
pub(super) fn accumulate(
    gradient: &[f64],
    bucket: &Bucket<'_>,
    limit_bits: u32,
    sums: &mut [i64],
    flags: &mut [i64],
) -> Result<()> {
    const OPERATION: &str = "accumulate_fixed";
    check::bucket(OPERATION, bucket, gradient.len(), sums.len())?;
    length(OPERATION, "flags", flags.len(), bucket.segments.len())?;
    check::limit_bits(OPERATION, limit_bits)?;
    for number in bucket.members.clone() {
        let Segment { range, exponent } = &bucket.segments[number];
        for i in range.clone() {
            let sum = &mut sums[i - bucket.elements.start];
            match reference::to_fixed(gradient[i] as f32, *exponent, limit_bits) {
                Ok(value) => *sum = sum.wrapping_add(value),
                Err(exceeded) => flags[number] = flags[number].max(exceeded),
            }
        }
    }
    Ok(())
}

pub(super) fn to_gradient(sums: &[i64], bucket: &Bucket<'_>, divisor: f64, gradient: &mut [f64]) -> Result<()> {
    check::bucket("fixed_to_gradient", bucket, gradient.len(), sums.len())?;
    for segment in &bucket.segments[bucket.members.clone()] {
        for i in segment.range.clone() {
            let sum = sums[i - bucket.elements.start];
            gradient[i] = f64::from(reference::from_fixed(sum, segment.exponent, divisor));
        }
    }
    Ok(())
}

/// Infinity where a segment holds a NaN, which a maximum would pass over.
pub(super) fn max_abs(vector: &[f64], segments: &[Segment]) -> Result<Vec<f32>> {
    check::segments("max_abs", segments, vector.len())?;
    let size = |value: &f64| if value.is_nan() { f64::INFINITY } else { value.abs() };
    let largest = |segment: &Segment| vector[segment.range.clone()].iter().map(size).fold(0.0, f64::max) as f32;
    Ok(segments.iter().map(largest).collect())
}

pub(super) fn adamw(
    parameters: &mut [f64],
    gradient: &[f64],
    first_moment: &mut [f64],
    second_moment: &mut [f64],
    settings: &AdamW,
) -> Result<()> {
    check::adamw(settings, parameters.len(), gradient.len(), first_moment.len(), second_moment.len())?;
    let moments = first_moment.iter_mut().zip(second_moment);
    for ((parameter, gradient), (first, second)) in parameters.iter_mut().zip(gradient).zip(moments) {
        (*parameter, *first, *second) = reference::adamw(*parameter, *gradient, *first, *second, settings);
    }
    Ok(())
}
