//! A memory whose use is counted: an arena that is planned, not a pool that grows as it happens.
//!
//! Until [`Arena::reserve`] every buffer is an allocation of its own; from then on buffers lie in slabs
//! ([`crate::slabs`] says which, [`crate::free_list`] where). Packed micro-batches hardly ever repeat a shape, so
//! buffers are cut from the slab to the nearest 256 bytes, where classes of sizes would keep one block for every size
//! that ever came by.

use crate::contract::Result;
use crate::slabs::{Piece, Slabs, Source};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that a backend has in buffers and scratch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In live buffers.
    pub in_use: usize,
    /// The most that was ever in use at once.
    pub peak: usize,
    /// Taken from device or system: in use or waiting for use.
    pub allocated: usize,
}

/// What was taken of a source, and what of it is in use.
#[derive(Debug)]
pub(crate) struct Arena<S: Source> {
    source: S,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slabs: Slabs,
    in_use: usize,
    peak: usize,
}

impl<S: Source> Arena<S> {
    pub(crate) fn new(source: S) -> Self {
        Self { source, state: Mutex::default() }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn source(&self) -> &S {
        &self.source
    }

    /// From here on buffers lie in slabs, one of which has `bytes` bytes.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<()> {
        self.state().slabs.reserve(&self.source, bytes)
    }

    /// A piece of at least `bytes` bytes, of unspecified content.
    pub(crate) fn take(&self, bytes: usize, what: &'static str) -> Result<Piece> {
        let mut state = self.state();
        let piece = state.slabs.take(&self.source, bytes, what)?;
        state.in_use += piece.bytes;
        state.peak = state.peak.max(state.in_use);
        Ok(piece)
    }

    /// Gives a piece of [`Arena::take`] back.
    pub(crate) fn put_back(&self, piece: Piece) {
        let mut state = self.state();
        state.in_use -= piece.bytes;
        // A source that has failed is told of once, where it is closed.
        if let Err(error) = state.slabs.put_back(&self.source, piece) {
            tracing::debug!(%error, "memory was not given back");
        }
    }

    /// Bytes in use now, at most, and in all.
    pub(crate) fn usage(&self) -> MemoryUse {
        let state = self.state();
        MemoryUse { in_use: state.in_use, peak: state.peak, allocated: state.slabs.allocated() }
    }

    /// Forgets the peak: from here on it is what is in use now.
    pub(crate) fn reset_peak(&self) {
        let mut state = self.state();
        state.peak = state.in_use;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Drop for Arena<S> {
    fn drop(&mut self) {
        if let Err(error) = self.state().slabs.release(&self.source) {
            tracing::debug!(%error, "memory was not given back");
        }
    }
}
