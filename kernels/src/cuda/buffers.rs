//! What the backend's callers hold: matrices, vectors, packings and caches on the device.

use super::CudaBackend;
use super::check::{self, Shaped};
use super::memory::Buffer;
use crate::PackedLayout;
use crate::contract::{AttentionShape, Result};

/// A row-major matrix in the backend's storage type.
#[derive(Debug)]
pub struct Matrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) buffer: Buffer,
}

impl Shaped for Matrix {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }
}

/// A vector of f32.
#[derive(Debug)]
pub struct Vector {
    pub(super) len: usize,
    pub(super) buffer: Buffer,
}

impl Vector {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The device address of an element.
    pub(super) fn at(&self, element: usize) -> u64 {
        self.buffer.ptr() + (element * size_of::<f32>()) as u64
    }
}

/// A vector of bf16.
#[derive(Debug)]
pub struct HalfVector {
    pub(super) len: usize,
    pub(super) buffer: Buffer,
}

/// A vector of i64.
#[derive(Debug)]
pub struct IntegerVector {
    pub(super) len: usize,
    pub(super) buffer: Buffer,
}

/// A vector of u32.
#[derive(Debug)]
pub struct IndexVector {
    pub(super) len: usize,
    pub(super) buffer: Buffer,
    /// The largest element, seen when it was uploaded: what a bound needs.
    largest: Option<u32>,
}

impl IndexVector {
    pub(super) fn new(b: &CudaBackend, values: &[u32]) -> Result<Self> {
        let buffer = b.upload(values, "indices")?;
        Ok(Self { len: values.len(), buffer, largest: values.iter().max().copied() })
    }

    /// All elements are below `limit`.
    pub(super) fn below(&self, operation: &'static str, name: &str, limit: usize) -> Result<()> {
        check::below(operation, name, self.largest.as_slice(), limit)
    }
}

/// Where the sequences lie: a [`PackedLayout`] on the device. All arrays are u32.
#[derive(Debug)]
pub struct Packing {
    /// Rows in all.
    pub(super) tokens: usize,
    /// Sequences.
    pub(super) sequences: usize,
    /// The largest position and one.
    pub(super) positions_end: usize,
    /// Row bounds of the sequences, `[sequences + 1]`.
    pub(super) bounds: Buffer,
    /// Position of each row within its sequence, `[tokens]`.
    pub(super) positions: Buffer,
    /// Sequence of each row, `[tokens]`.
    pub(super) sequence: Buffer,
    /// Low halves of the sample numbers of the sequences, `[sequences]`: what dropout masks take.
    pub(super) samples: Buffer,
}

impl Packing {
    pub(super) fn new(b: &CudaBackend, layout: &PackedLayout) -> Result<Self> {
        check::packing(layout, false)?;
        let (mut positions, mut sequence) = (Vec::new(), Vec::new());
        for (number, ends) in layout.bounds().windows(2).enumerate() {
            let length = (ends[1] - ends[0]) as usize;
            positions.extend((layout.first_positions()[number]..).take(length));
            sequence.extend(std::iter::repeat_n(number as u32, length));
        }
        let samples: Vec<u32> = layout.samples().iter().map(|&sample| sample as u32).collect();
        Ok(Self {
            tokens: layout.tokens(),
            sequences: samples.len(),
            positions_end: positions.iter().max().map_or(0, |&position| position as usize + 1),
            bounds: b.upload(layout.bounds(), "row bounds")?,
            positions: b.upload(&positions, "positions")?,
            sequence: b.upload(&sequence, "sequence numbers")?,
            samples: b.upload(&samples, "sample numbers")?,
        })
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }
}

/// Keys and values of one layer and one sequence, each `[capacity, kv_heads * head_dim]` in the backend's storage type.
#[derive(Debug)]
pub struct Cache {
    pub(super) keys: Buffer,
    pub(super) values: Buffer,
    /// Tokens held.
    pub(super) len: usize,
    pub(super) capacity: usize,
    pub(super) cols: usize,
}

impl Cache {
    pub(super) fn new(b: &CudaBackend, capacity: usize, shape: &AttentionShape) -> Result<Self> {
        check::attention_shape("kv_cache", shape)?;
        let cols = shape.kv_heads * shape.head_dim;
        let bytes = capacity * cols * b.storage().bytes();
        let (keys, values) = (b.scratch(bytes, "a key cache")?, b.scratch(bytes, "a value cache")?);
        Ok(Self { keys, values, len: 0, capacity, cols })
    }
}
