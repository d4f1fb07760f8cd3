//! Host memory: an [`Arena`] over the system's, and blocks of f32 cut from it.

#![allow(unsafe_code)]

use crate::KernelError;
use crate::arena::Arena;
use crate::contract::Result;
use crate::free_list::ALIGNMENT;
use crate::slabs::{Piece, Source};
use memmap2::{MmapMut, MmapOptions};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// From so many bytes on memory is mapped by itself: pages that nobody touches cost nothing, and the system may use
/// large ones.
const MAPPED: usize = 4 << 20;

/// A unit of the heap, as aligned as pieces are.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(256))]
struct Unit([f32; ALIGNMENT / size_of::<f32>()]);

const ZEROS: Unit = Unit([0.0; ALIGNMENT / size_of::<f32>()]);

/// One allocation, initialized with zeros.
#[derive(Debug)]
enum Allocation {
    Heap(Vec<Unit>),
    Mapped(MmapMut),
}

impl Allocation {
    fn new(bytes: usize) -> Option<Self> {
        if bytes >= MAPPED {
            let mapped = MmapOptions::new().len(bytes).map_anon().ok()?;
            // Fewer faults and fewer misses of the translation cache; a system that has no large pages goes without.
            #[cfg(target_os = "linux")]
            let _ = mapped.advise(memmap2::Advice::HugePage);
            return Some(Self::Mapped(mapped));
        }
        let (units, mut heap) = (bytes.div_ceil(ALIGNMENT), Vec::new());
        heap.try_reserve_exact(units).ok()?;
        heap.resize(units, ZEROS);
        Some(Self::Heap(heap))
    }

    fn address(&mut self) -> usize {
        match self {
            Self::Heap(units) => units.as_mut_ptr().expose_provenance(),
            Self::Mapped(mapped) => mapped.as_mut_ptr().expose_provenance(),
        }
    }
}

/// The system's memory: what was taken of it, by address.
#[derive(Debug, Default)]
pub(crate) struct Host {
    live: Mutex<BTreeMap<u64, Allocation>>,
}

impl Host {
    fn live(&self) -> MutexGuard<'_, BTreeMap<u64, Allocation>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Host {
    fn allocate(&self, bytes: usize, what: &'static str) -> Result<u64> {
        let mut allocation = Allocation::new(bytes).ok_or(KernelError::OutOfMemory { requested: bytes, what })?;
        let address = allocation.address() as u64;
        self.live().insert(address, allocation);
        Ok(address)
    }

    fn free(&self, pointer: u64) -> Result<()> {
        self.live().remove(&pointer);
        Ok(())
    }
}

/// The memory of a [`super::CpuBackend`].
#[derive(Debug, Default)]
pub(crate) struct Memory(Arena<Host>);

impl Default for Arena<Host> {
    fn default() -> Self {
        Self::new(Host::default())
    }
}

impl Memory {
    pub(crate) fn arena(&self) -> &Arena<Host> {
        &self.0
    }

    /// A block of `len` elements of unspecified content.
    pub(crate) fn take(self: &Arc<Self>, len: usize, what: &'static str) -> Result<Block> {
        let bytes = len.checked_mul(size_of::<f32>()).filter(|&bytes| bytes <= isize::MAX as usize - ALIGNMENT);
        let bytes = bytes.ok_or(KernelError::OutOfMemory { requested: usize::MAX, what })?;
        Ok(Block { piece: self.0.take(bytes, what)?, len, home: Arc::clone(self) })
    }

    /// A block of zeros.
    pub(crate) fn take_zeros(self: &Arc<Self>, len: usize, what: &'static str) -> Result<Block> {
        let mut block = self.take(len, what)?;
        block.as_mut_slice().fill(0.0);
        Ok(block)
    }
}

/// A stretch of f32, aligned to 256 bytes: no vector load straddles two cache lines at its start.
#[derive(Debug)]
pub(crate) struct Block {
    piece: Piece,
    len: usize,
    home: Arc<Memory>,
}

impl Block {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        let start = std::ptr::with_exposed_provenance::<f32>(self.piece.pointer as usize);
        // SAFETY: the piece lies within one live allocation of `home`, whose address was exposed, and has at least
        // `len` f32. It is aligned to 256 bytes, was zeros at first and has been written as f32 alone since. Nobody
        // else has it until it is dropped, and whoever writes needs this block mutably.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        let start = std::ptr::with_exposed_provenance_mut::<f32>(self.piece.pointer as usize);
        // SAFETY: as in `as_slice`; this block is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.home.0.put_back(self.piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_zero_at_first_and_apart() {
        let memory = Arc::new(Memory::default());
        for reserved in [false, true] {
            let lens = [1, 63, 64, 65, 1000, MAPPED / 4, MAPPED / 4 + 1];
            let mut blocks: Vec<Block> = lens.map(|len| memory.take_zeros(len, "test").unwrap()).into();
            for (value, block) in blocks.iter_mut().enumerate() {
                assert_eq!(block.as_slice().as_ptr() as usize % ALIGNMENT, 0);
                assert!(block.as_slice().iter().all(|&x| x == 0.0));
                block.as_mut_slice().fill(value as f32);
            }
            for (value, (block, len)) in blocks.iter().zip(lens).enumerate() {
                assert!(block.as_slice().len() == len && block.as_slice().iter().all(|&x| x == value as f32));
            }
            drop(blocks);
            assert_eq!(memory.arena().usage().in_use, 0);
            assert_eq!(memory.arena().usage().allocated > 0, reserved);
            memory.arena().reserve(3 * MAPPED).unwrap();
        }
    }

    #[test]
    fn a_reservation_is_used_again_and_not_grown() {
        let memory = Arc::new(Memory::default());
        memory.arena().reserve(1 << 20).unwrap();
        let allocated = memory.arena().usage().allocated;
        for len in 1..500 {
            let (first, second) = (memory.take(len * 200, "test").unwrap(), memory.take(len * 200, "test").unwrap());
            assert_ne!(first.as_slice().as_ptr(), second.as_slice().as_ptr());
            drop(first);
        }
        assert_eq!(memory.arena().usage().allocated, allocated);
    }

    #[test]
    fn an_impossible_request_is_an_error() {
        let memory = Arc::new(Memory::default());
        for len in [1 << 61, 1 << 60, usize::MAX] {
            assert!(matches!(memory.take(len, "test"), Err(KernelError::OutOfMemory { what: "test", .. })), "{len}");
        }
        assert_eq!(memory.arena().usage(), crate::arena::MemoryUse::default());
    }
}
