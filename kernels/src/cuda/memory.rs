//! Device memory: an [`Arena`] over the device.
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
use crate::arena::{Arena, MemoryUse};
use crate::contract::Result;
use crate::slabs::{Piece, Source};
use std::sync::Arc;

/// The memory of a device.
#[derive(Debug)]
pub(super) struct Memory(Arena<Arc<Device>>);

impl Source for Arc<Device> {
    fn allocate(&self, bytes: usize, what: &'static str) -> Result<u64> {
        Device::allocate(self, bytes, what)
    }

    fn free(&self, pointer: u64) -> Result<()> {
        Device::free(self, pointer)
    }
}

impl Memory {
    pub(super) fn new(device: Arc<Device>) -> Self {
        Self(Arena::new(device))
    }

    pub(super) fn device(&self) -> &Device {
        self.0.source()
    }

    pub(super) fn shared_device(&self) -> Arc<Device> {
        Arc::clone(self.0.source())
    }

    /// See [`super::CudaBackend::reserve`].
    pub(super) fn reserve(&self, bytes: usize) -> Result<()> {
        self.0.reserve(bytes)
    }

    /// A buffer of unspecified content.
    pub(super) fn take(self: &Arc<Self>, bytes: usize, what: &'static str) -> Result<Buffer> {
        Ok(Buffer { piece: self.0.take(bytes, what)?, bytes, home: Arc::clone(self) })
    }

    /// Bytes in use now, at most, and in all; frozen weights are among them.
    pub(super) fn usage(&self) -> MemoryUse {
        self.0.usage()
    }

    /// Forgets the peak: from here on it is what is in use now.
    pub(super) fn reset_peak(&self) {
        self.0.reset_peak();
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
        Arc::ptr_eq(self.home.0.source(), device)
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
        self.home.0.put_back(self.piece);
    }
}
