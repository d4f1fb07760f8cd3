//! The CPU backend: f32 in arithmetic and in memory, but for frozen weights, which may be bf16 there.
//!
//! One module an operation family. Fat products go to the `gemm` crate ([`gemm`]); everything between them is fused
//! loops compiled for several instruction sets ([`simd`]). Work is shared among threads in a few fat pieces, and no
//! sum is ever divided among threads, so the bits do not depend on how many there are.

mod attention;
mod attention_backward;
mod attention_cached;
mod backend;
mod buffers;
mod dropout;
mod exp;
mod fixed;
mod footprint;
mod gated;
mod gemm;
mod head;
mod linear;
mod memory;
mod norm;
mod optimizer;
mod rotary;
mod rows;
mod simd;
#[cfg(test)]
mod tests;
mod threads;
mod weights;

pub use crate::arena::MemoryUse;
pub use attention_cached::Cache;
pub use buffers::{HalfVector, IndexVector, IntegerVector, Matrix, PackingTable, Vector};
pub use footprint::CpuFootprint;
pub use weights::{FrozenLinear, RotaryTable, Table};

use crate::Storage;
use crate::check;
use crate::contract::Result;
use std::sync::Arc;

/// The CPU as a device: threads and its memory.
#[derive(Debug)]
pub struct CpuBackend {
    storage: Storage,
    threads: threads::Threads,
    memory: Arc<memory::Memory>,
}

impl CpuBackend {
    /// A backend of `threads` threads that stores all as f32; 0 means all cores that the process may use.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`] when the threads cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_weights(threads, Storage::F32)
    }

    /// The same with frozen weights stored as `storage`. They are widened as they are used, and everything else is f32: the
    /// bits are those of f32 weights of the same values.
    ///
    /// # Errors
    /// As [`CpuBackend::new`].
    pub fn with_weights(threads: usize, storage: Storage) -> Result<Self> {
        Ok(Self { storage, threads: threads::Threads::new(threads)?, memory: Arc::default() })
    }

    /// Sizes of its memory.
    #[must_use]
    pub fn footprint(&self) -> CpuFootprint {
        CpuFootprint { threads: self.threads.count(), weights: self.storage }
    }

    /// Threads of this backend.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// Takes `bytes` bytes from the system in one piece, in which buffers lie from here on.
    ///
    /// To be called when all is made that stays (adapter, moments), with what the largest micro-batch takes. Before, and
    /// if never called, each buffer is an allocation of its own. Called again, it does nothing where enough is reserved.
    ///
    /// # Errors
    /// [`crate::KernelError::OutOfMemory`] when the system has no such piece.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        self.memory.arena().reserve(bytes)
    }

    /// Bytes in buffers and scratch; frozen weights are not counted.
    #[must_use]
    pub fn memory(&self) -> MemoryUse {
        self.memory.arena().usage()
    }

    /// Starts measuring [`MemoryUse::peak`] anew.
    pub fn reset_peak_memory(&self) {
        self.memory.arena().reset_peak();
    }
}
