//! Device memory: an arena that is planned, not a pool that grows as it happens.
//!
//! Until [`Memory::reserve`] every buffer is an allocation of its own; from then on buffers lie in slabs
//! ([`super::slabs`] says which, [`crate::free_list`] where). Packed micro-batches hardly ever repeat a shape, so
//! buffers are cut from the slab to the nearest 256 bytes, where classes of sizes would keep one block for every size
//! that ever came by.
//!
//! A dropped buffer may be used again at once, though kernels that use it may still be enqueued. That is safe because
//! all work is on one stream: whatever the next owner enqueues runs after them. What a collective uses
//! on its own stream stays borrowed until that is over ([`super::nccl`]). Only [`Device::free`] has to wait.
//!
//! # What a slab hides
//! The software device (as compute-sanitizer on a GPU) holds every access against the table of allocations. Within a
//! slab it cannot tell a buffer from its neighbour, and finds old values where it would find poison. So whatever tests
//! kernels leaves the memory unreserved: there an access beyond a buffer, or to one that was dropped, is a fault.

use super::device::Device;
use super::slabs::{Piece, Slabs, Source};
use crate::contract::Result;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that a [`super::CudaBackend`] has in buffers, scratch and frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In live buffers.
    pub in_use: usize,
    /// The most that was ever in use at once.
    pub peak: usize,
    /// Taken from the device: in use or waiting for use.
    pub allocated: usize,
}

/// The memory of a device.
#[derive(Debug)]
pub(super) struct Memory {
    device: Arc<Device>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slabs: Slabs,
    in_use: usize,
    peak: usize,
}

impl Source for Device {
    fn allocate(&self, bytes: usize, what: &'static str) -> Result<u64> {
        Device::allocate(self, bytes, what)
    }

    fn free(&self, pointer: u64) -> Result<()> {
        Device::free(self, pointer)
    }
}

impl Memory {
    pub(super) fn new(device: Arc<Device>) -> Self {
        Self { device, state: Mutex::default() }
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn shared_device(&self) -> Arc<Device> {
        Arc::clone(&self.device)
    }

    /// See [`super::CudaBackend::reserve`].
    pub(super) fn reserve(&self, bytes: usize) -> Result<()> {
        self.state().slabs.reserve(self.device(), bytes)
    }

    /// A buffer of unspecified content.
    pub(super) fn take(self: &Arc<Self>, bytes: usize, what: &'static str) -> Result<Buffer> {
        let mut state = self.state();
        let piece = state.slabs.take(self.device(), bytes, what)?;
        state.in_use += piece.bytes;
        state.peak = state.peak.max(state.in_use);
        Ok(Buffer { piece, bytes, home: Arc::clone(self) })
    }

    /// Bytes in use now, at most, and in all.
    pub(super) fn usage(&self) -> MemoryUse {
        let state = self.state();
        MemoryUse { in_use: state.in_use, peak: state.peak, allocated: state.slabs.allocated() }
    }

    /// Forgets the peak: from here on it is what is in use now.
    pub(super) fn reset_peak(&self) {
        let mut state = self.state();
        state.peak = state.in_use;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Err(error) = self.state().slabs.release(self.device()) {
            tracing::debug!(%error, "device memory was not given back");
        }
    }
}

/// Device memory, back in its slab or with the device when dropped. Aligned to 256 bytes; never null, even when empty.
#[derive(Debug)]
pub(super) struct Buffer {
    piece: Piece,
    bytes: usize,
    home: Arc<Memory>,
}

impl Buffer {
    /// Device address.
    pub(super) fn ptr(&self) -> u64 {
        self.piece.pointer
    }

    /// Whether the stream of that very device orders what is done with it.
    pub(super) fn is_of(&self, device: &Arc<Device>) -> bool {
        Arc::ptr_eq(&self.home.device, device)
    }

    /// Bytes asked for.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device that it is of.
    pub(super) fn device(&self) -> &Device {
        self.home.device()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.home.state();
        state.in_use -= self.piece.bytes;
        // A device that has failed is told of once, where it is closed.
        if let Err(error) = state.slabs.put_back(self.home.device(), self.piece) {
            tracing::debug!(%error, "device memory was not given back");
        }
    }
}
