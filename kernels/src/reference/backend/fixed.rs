//! Fixed point and the optimizer.

use crate::check::{self, length};
use crate::contract::{AdamW, Result, Segment};
use crate::reference;

/// What is rounded to fixed point is the f32 of the contract.
pub(super) fn accumulate(
    gradient: &[f64],
    segments: &[Segment],
    limit_bits: u32,
    sums: &mut [i64],
    flags: &mut [i64],
) -> Result<()> {
    const OPERATION: &str = "accumulate_fixed";
    length(OPERATION, "sums", sums.len(), gradient.len())?;
    length(OPERATION, "flags", flags.len(), segments.len())?;
    check::segments(OPERATION, segments, gradient.len())?;
    check::limit_bits(OPERATION, limit_bits)?;
    for (segment, flag) in segments.iter().zip(flags) {
        for i in segment.range.clone() {
            match reference::to_fixed(gradient[i] as f32, segment.exponent, limit_bits) {
                Ok(value) => sums[i] = sums[i].wrapping_add(value),
                Err(exceeded) => *flag = (*flag).max(exceeded),
            }
        }
    }
    Ok(())
}

pub(super) fn to_gradient(sums: &[i64], segments: &[Segment], divisor: f64, gradient: &mut [f64]) -> Result<()> {
    length("fixed_to_gradient", "sums", sums.len(), gradient.len())?;
    check::segments("fixed_to_gradient", segments, gradient.len())?;
    for segment in segments {
        for i in segment.range.clone() {
            gradient[i] = f64::from(reference::from_fixed(sums[i], segment.exponent, divisor));
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
