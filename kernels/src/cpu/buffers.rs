//! What the CPU backend's operations read and write.

use super::memory::Block;
use crate::PackedLayout;
use crate::contract::Result;
use half::bf16;
use std::ops::Range;

/// A row-major f32 matrix.
#[derive(Debug)]
pub struct Matrix {
    pub(crate) block: Block,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Matrix {
    pub(crate) fn data(&self) -> &[f32] {
        self.block.as_slice()
    }

    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        self.block.as_mut_slice()
    }
}

impl super::check::Shaped for Matrix {
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
    pub(crate) block: Block,
}

impl Vector {
    pub(crate) fn data(&self) -> &[f32] {
        self.block.as_slice()
    }

    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        self.block.as_mut_slice()
    }

    pub(crate) fn len(&self) -> usize {
        self.block.len()
    }
}

/// A vector of bf16.
#[derive(Clone, Debug)]
pub struct HalfVector {
    pub(crate) values: Vec<bf16>,
}

/// A vector of i64.
#[derive(Debug)]
pub struct IntegerVector {
    pub(crate) values: Vec<i64>,
}

/// A vector of u32.
#[derive(Debug)]
pub struct IndexVector {
    pub(crate) values: Vec<u32>,
}

/// Where the sequences lie, and the sample and position of every row.
#[derive(Debug)]
pub struct PackingTable {
    /// Row bounds of the sequences.
    pub(crate) bounds: Vec<usize>,
    /// Position of each row within its sequence.
    pub(crate) positions: Vec<u32>,
    /// Sample of each row.
    pub(crate) samples: Vec<u64>,
    /// Rows of the first sequence, which the others continue; 0 when each stands alone.
    pub(crate) shared: usize,
}

impl PackingTable {
    pub(crate) fn new(layout: &PackedLayout) -> Result<Self> {
        super::check::packing(layout, true)?;
        let bounds: Vec<usize> = layout.bounds().iter().map(|&bound| bound as usize).collect();
        let sequences = bounds.len() - 1;
        let shared = layout.shared() as usize;
        let mut table = Self { bounds, positions: Vec::new(), samples: Vec::new(), shared };
        for sequence in 0..sequences {
            let (start, end) = (table.bounds[sequence], table.bounds[sequence + 1]);
            let first = layout.first_positions()[sequence];
            table.positions.extend((first..).take(end - start));
            table.samples.extend(std::iter::repeat_n(layout.samples()[sequence], end - start));
        }
        Ok(table)
    }

    pub(crate) fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// The rows of each sequence, and how many it shares before them.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let ranges = self.bounds.windows(2).map(|bounds| bounds[0]..bounds[1]);
        ranges.map(|rows| (rows.clone(), if rows.start > 0 { self.shared } else { 0 }))
    }
}
