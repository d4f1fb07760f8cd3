//! The CPU backend: f32 in memory and arithmetic.
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
mod norm;
mod optimizer;
mod rotary;
mod rows;
mod simd;
#[cfg(test)]
mod tests;
mod threads;
mod weights;

pub use attention_cached::Cache;
pub use buffers::{HalfVector, IndexVector, IntegerVector, Matrix, MemoryUse, PackingTable, Vector};
pub use footprint::CpuFootprint;
pub use weights::{FrozenLinear, RotaryTable, Table};

use crate::check;
use crate::contract::Result;
use std::sync::Arc;

/// The CPU as a device: threads and a pool of buffers.
#[derive(Debug)]
pub struct CpuBackend {
    threads: threads::Threads,
    memory: Arc<buffers::FreeLists>,
}

impl CpuBackend {
    /// A backend of `threads` threads; 0 means all cores that the process may use.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`] when the threads cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = threads::Threads::new(threads)?;
        Ok(Self { threads, memory: Arc::default() })
    }

    /// Sizes of its memory.
    #[must_use]
    pub fn footprint(&self) -> CpuFootprint {
        CpuFootprint { threads: self.threads.count() }
    }

    /// Threads of this backend.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// Bytes in buffers and scratch.
    #[must_use]
    pub fn memory(&self) -> MemoryUse {
        self.memory.memory()
    }

    /// Starts measuring [`MemoryUse::peak`] anew.
    pub fn reset_peak_memory(&self) {
        self.memory.reset_peak();
    }
}
