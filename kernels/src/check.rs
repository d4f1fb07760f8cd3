//! Shape errors: what all backends refuse, and how they say so.

use crate::contract::{AdamW, AttentionShape, Backend, Bucket, LoraPath, Result, Segment};
use crate::{KernelError, PackedLayout};

/// A matrix of any backend.
pub(crate) trait Shaped {
    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
}

impl<M: Shaped> Shaped for &mut M {
    fn rows(&self) -> usize {
        (**self).rows()
    }

    fn cols(&self) -> usize {
        (**self).cols()
    }
}

/// Fails with [`KernelError::Shape`] unless `holds`.
pub(crate) fn ensure(holds: bool, operation: &'static str, detail: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(KernelError::Shape { operation, detail: detail() }) }
}

/// The matrix has this shape.
pub(crate) fn shape(operation: &'static str, name: &str, matrix: &impl Shaped, rows: usize, cols: usize) -> Result<()> {
    ensure(matrix.rows() == rows && matrix.cols() == cols, operation, || {
        format!("{name} is [{}, {}], expected [{rows}, {cols}]", matrix.rows(), matrix.cols())
    })
}

/// A length is what it should be.
pub(crate) fn length(operation: &'static str, name: &str, got: usize, expected: usize) -> Result<()> {
    ensure(got == expected, operation, || format!("{name} has {got} elements, expected {expected}"))
}

/// All indices are below `limit`.
pub(crate) fn below(operation: &'static str, name: &str, indices: &[u32], limit: usize) -> Result<()> {
    match indices.iter().find(|&&index| index as usize >= limit) {
        None => Ok(()),
        Some(index) => {
            Err(KernelError::Shape { operation, detail: format!("{name} holds {index}, which is not below {limit}") })
        }
    }
}

/// The adapter of a layer `[out, inp]` lies within `parameters` elements, and its dropout keeps something.
/// `masked_rows` is how many rows the packing of a dropout has.
pub(crate) fn lora_path<B: Backend>(
    operation: &'static str,
    path: &LoraPath<'_, B>,
    parameters: usize,
    (out, inp): (usize, usize),
    rows: usize,
    masked_rows: impl Fn(&B::Packing) -> usize,
) -> Result<()> {
    ensure(path.rank > 0, operation, || "rank is 0".into())?;
    length(operation, "A", path.a.len(), path.rank * inp)?;
    length(operation, "B", path.b.len(), path.rank * out)?;
    ensure(path.a.end <= parameters && path.b.end <= parameters, operation, || {
        format!("A {:?} or B {:?} is outside {parameters} parameters", path.a, path.b)
    })?;
    let Some(dropout) = path.dropout.as_ref().filter(|dropout| dropout.drops()) else { return Ok(()) };
    ensure(dropout.probability < 1.0, operation, || format!("dropout probability {}", dropout.probability))?;
    length(operation, "the packing of the dropout mask", masked_rows(dropout.packing), rows)
}

/// The attention shape makes sense in itself.
pub(crate) fn attention_shape(operation: &'static str, shape: &AttentionShape) -> Result<()> {
    let sound = shape.kv_heads > 0
        && shape.heads > 0
        && shape.heads.is_multiple_of(shape.kv_heads)
        && shape.head_dim > 0
        && shape.window != Some(0);
    ensure(sound, operation, || format!("impossible attention shape {shape:?}"))
}

/// Operands of packed attention: `queries` are `[rows, heads * head_dim]`, `keys` `[rows, kv_heads * head_dim]`, and
/// `saved` elements of log-sum-exp.
pub(crate) fn attention<M: Shaped>(
    operation: &'static str,
    attention: &AttentionShape,
    rows: usize,
    queries: &[(&str, &M)],
    keys: &[(&str, &M)],
    saved: usize,
) -> Result<()> {
    attention_shape(operation, attention)?;
    for (name, matrix) in queries {
        shape(operation, name, *matrix, rows, attention.heads * attention.head_dim)?;
    }
    for (name, matrix) in keys {
        shape(operation, name, *matrix, rows, attention.kv_heads * attention.head_dim)?;
    }
    length(operation, "log_sum_exp", saved, rows * attention.heads)
}

/// A layout has a sample for each of its sequences, no sequence is empty, and a prefix is shared only where that is known.
pub(crate) fn packing(layout: &PackedLayout, shares_prefixes: bool) -> Result<()> {
    let bounds = layout.bounds();
    ensure(shares_prefixes || layout.shared() == 0, "upload_packing", || {
        format!("the sequences share {} rows, which this backend cannot", layout.shared())
    })?;
    length("upload_packing", "samples", layout.samples().len(), bounds.len() - 1)?;
    for (sequence, ends) in bounds.windows(2).enumerate() {
        ensure(ends[0] < ends[1], "upload_packing", || format!("sequence {sequence} is empty"))?;
    }
    Ok(())
}

/// Exponents of fixed point: wide enough for any f32, and their powers of two are normal f64.
const EXPONENTS: std::ops::RangeInclusive<i32> = -800..=800;

/// Segments ascend, do not overlap, lie within `len` elements and have usable exponents.
pub(crate) fn segments(operation: &'static str, segments: &[Segment], len: usize) -> Result<()> {
    let mut end = 0;
    for segment in segments {
        let range = &segment.range;
        ensure(range.start >= end && range.start <= range.end && range.end <= len, operation, || {
            format!("segment {range:?} overlaps the one before it (up to {end}) or leaves the {len} elements")
        })?;
        ensure(EXPONENTS.contains(&segment.exponent), operation, || {
            format!("exponent {} is outside {EXPONENTS:?}", segment.exponent)
        })?;
        end = range.end;
    }
    Ok(())
}

/// The segments are sound, `members` and `elements` are of this vector of `len` elements, the members lie within the elements,
/// and there are as many sums as these.
pub(crate) fn bucket(operation: &'static str, bucket: &Bucket<'_>, len: usize, sums: usize) -> Result<()> {
    let Bucket { segments: all, members, elements } = bucket;
    segments(operation, all, len)?;
    let sound = elements.start <= elements.end && elements.end <= len;
    let inside = |members: &[Segment]| {
        members.iter().all(|member| elements.start <= member.range.start && member.range.end <= elements.end)
    };
    ensure(sound && all.get(members.clone()).is_some_and(inside), operation, || {
        format!("segments {members:?} of {} are not in elements {elements:?} of {len}", all.len())
    })?;
    length(operation, "sums", sums, elements.len())
}

/// `count` elements from `first` on are there.
pub(crate) fn stretch(operation: &'static str, first: usize, count: usize, len: usize) -> Result<()> {
    ensure(first <= len && count <= len - first, operation, || {
        format!("there are no {count} elements from {first} on in a vector of {len}")
    })
}

/// The bound on a fixed-point value leaves the sign and one bit of an i64.
pub(crate) fn limit_bits(operation: &'static str, limit_bits: u32) -> Result<()> {
    const MOST: u32 = 62;
    ensure(limit_bits <= MOST, operation, || format!("limit_bits is {limit_bits}, at most {MOST}"))
}

/// All vectors of an update have `len` elements, and its number is one.
pub(crate) fn adamw(settings: &AdamW, len: usize, gradient: usize, first: usize, second: usize) -> Result<()> {
    for (name, got) in [("gradient", gradient), ("first_moment", first), ("second_moment", second)] {
        length("adamw", name, got, len)?;
    }
    ensure(settings.step > 0, "adamw", || "updates are numbered from 1".into())
}
