//! Memory of the CPU backend: cache-line aligned f32 blocks that return to free lists when dropped.

use crate::contract::Result;
use crate::{KernelError, PackedLayout};
use half::bf16;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// f32 elements of a cache line: blocks start on one, so that no vector load straddles two lines.
const LINE: usize = 16;

/// Blocks of f32 that wait for their next use, by capacity.
///
/// Packed micro-batches hardly ever repeat a shape, so capacities are rounded up to classes at most an eighth apart:
/// after a few micro-batches nothing is allocated any more, and the kernel is not asked for fresh pages.
#[derive(Debug, Default)]
pub(crate) struct FreeLists {
    waiting: Mutex<BTreeMap<usize, Vec<Vec<f32>>>>,
    in_use: AtomicUsize,
    peak: AtomicUsize,
    allocated: AtomicUsize,
}

/// Bytes that a [`super::CpuBackend`] has in buffers and scratch; frozen weights are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// In live buffers.
    pub in_use: usize,
    /// The most that was ever in use at once.
    pub peak: usize,
    /// Taken from the system: in use or waiting for reuse.
    pub allocated: usize,
}

/// The capacity that serves `len` elements.
pub(crate) fn size_class(len: usize) -> usize {
    let wanted = len + LINE;
    if wanted <= 64 {
        return 64;
    }
    let step = (wanted.next_power_of_two() / 16).max(LINE);
    wanted.div_ceil(step) * step
}

impl FreeLists {
    /// A block of `len` elements of unspecified content.
    pub(crate) fn take(self: &Arc<Self>, len: usize, what: &'static str) -> Result<Block> {
        let capacity = size_class(len);
        let found = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.get_mut(&capacity).and_then(Vec::pop)
        };
        let storage = match found {
            Some(storage) => storage,
            None => self.allocate(capacity, what)?,
        };
        let bytes = capacity * size_of::<f32>();
        let in_use = self.in_use.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(in_use, Relaxed);
        let start = storage.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        Ok(Block { storage, start, len, home: Arc::clone(self) })
    }

    /// A block of zeros.
    pub(crate) fn take_zeros(self: &Arc<Self>, len: usize, what: &'static str) -> Result<Block> {
        let mut block = self.take(len, what)?;
        block.as_mut_slice().fill(0.0);
        Ok(block)
    }

    fn allocate(&self, capacity: usize, what: &'static str) -> Result<Vec<f32>> {
        let bytes = capacity * size_of::<f32>();
        let mut storage = Vec::new();
        storage.try_reserve_exact(capacity).map_err(|_| KernelError::OutOfMemory { requested: bytes, what })?;
        storage.resize(capacity, 0.0);
        self.allocated.fetch_add(bytes, Relaxed);
        Ok(storage)
    }

    fn put_back(&self, storage: Vec<f32>) {
        self.in_use.fetch_sub(storage.len() * size_of::<f32>(), Relaxed);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(storage.len()).or_default().push(storage);
    }

    /// Bytes in use now, at most, and in all.
    pub(crate) fn memory(&self) -> MemoryUse {
        MemoryUse {
            in_use: self.in_use.load(Relaxed),
            peak: self.peak.load(Relaxed),
            allocated: self.allocated.load(Relaxed),
        }
    }

    /// Forgets the peak: from here on it is what is in use now.
    pub(crate) fn reset_peak(&self) {
        self.peak.store(self.in_use.load(Relaxed), Relaxed);
    }
}

/// A stretch of f32 that starts on a cache line.
#[derive(Debug)]
pub(crate) struct Block {
    storage: Vec<f32>,
    start: usize,
    len: usize,
    home: Arc<FreeLists>,
}

impl Block {
    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.storage[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.home.put_back(std::mem::take(&mut self.storage));
    }
}

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
        self.block.len
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
}

impl PackingTable {
    pub(crate) fn new(layout: &PackedLayout) -> Result<Self> {
        super::check::packing(layout)?;
        let bounds: Vec<usize> = layout.bounds().iter().map(|&bound| bound as usize).collect();
        let sequences = bounds.len() - 1;
        let mut table = Self { bounds, positions: Vec::new(), samples: Vec::new() };
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_is_asked_and_waste_little() {
        for len in (1..5000).chain([100_000, 1_234_567, 1 << 20, (1 << 20) + 1]) {
            let class = size_class(len);
            assert!(class >= len + LINE);
            assert!(class <= (len + LINE) * 9 / 8 + 64, "{len} -> {class}");
            assert_eq!(size_class(class - LINE), class);
        }
    }

    #[test]
    fn blocks_are_aligned_reused_and_counted() {
        let lists = Arc::new(FreeLists::default());
        let block = lists.take(1000, "test").unwrap();
        assert_eq!(block.as_slice().as_ptr() as usize % 64, 0);
        let allocated = lists.memory().allocated;
        drop(block);
        assert_eq!(lists.memory().in_use, 0);
        let other = lists.take_zeros(990, "test").unwrap();
        assert!(other.as_slice().iter().all(|&value| value == 0.0));
        assert_eq!(lists.memory().allocated, allocated);
        assert_eq!(lists.memory().peak, allocated);
    }

    #[test]
    fn an_impossible_request_is_an_error() {
        let lists = Arc::new(FreeLists::default());
        assert!(matches!(lists.take(1 << 61, "test"), Err(KernelError::OutOfMemory { what: "test", .. })));
    }
}
