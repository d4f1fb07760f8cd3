//! Device memory: a pool of buffers by size class.
//!
//! A dropped buffer returns to the pool at once, though kernels that use it may still be enqueued. That is safe because
//! all work is on one stream: whatever the next owner enqueues runs after them. What a collective uses on its own stream
//! stays borrowed until that is over ([`super::nccl`]). Only [`Device::free`] has to wait.

use super::device::Device;
use crate::KernelError;
use crate::contract::Result;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Smallest class, and the alignment of every buffer.
const SMALLEST: usize = 256;

/// Bytes that a [`super::CudaBackend`] has in buffers, scratch and frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In live buffers.
    pub in_use: usize,
    /// The most that was ever in use at once.
    pub peak: usize,
    /// Taken from the device: in use or waiting for reuse.
    pub allocated: usize,
}

/// Device memory that waits for its next use, by class.
#[derive(Debug)]
pub(super) struct Pool {
    device: Arc<Device>,
    waiting: Mutex<BTreeMap<usize, Vec<u64>>>,
    in_use: AtomicUsize,
    peak: AtomicUsize,
    allocated: AtomicUsize,
}

/// The class that serves `bytes`: packed micro-batches hardly ever repeat a shape, so classes are at most an eighth
/// apart.
fn size_class(bytes: usize) -> usize {
    let wanted = bytes.max(SMALLEST);
    let step = (wanted.next_power_of_two() / 16).max(SMALLEST);
    wanted.div_ceil(step) * step
}

impl Pool {
    pub(super) fn new(device: Arc<Device>) -> Self {
        let (waiting, counter) = (Mutex::default(), AtomicUsize::default);
        Self { device, waiting, in_use: counter(), peak: counter(), allocated: counter() }
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn shared_device(&self) -> Arc<Device> {
        Arc::clone(&self.device)
    }

    /// A buffer of unspecified content.
    pub(super) fn take(self: &Arc<Self>, bytes: usize, what: &'static str) -> Result<Buffer> {
        let class = size_class(bytes);
        let (class, pointer) = match self.reuse(class) {
            Some(found) => found,
            None => (class, self.allocate(class, what)?),
        };
        let in_use = self.in_use.fetch_add(class, Relaxed) + class;
        self.peak.fetch_max(in_use, Relaxed);
        Ok(Buffer { pointer, bytes, class, home: Arc::clone(self) })
    }

    /// A waiting block of this class, or of one at most a quarter larger.
    fn reuse(&self, class: usize) -> Option<(usize, u64)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (&found, blocks) = waiting.range_mut(class..=class + class / 4).find(|(_, blocks)| !blocks.is_empty())?;
        blocks.pop().map(|pointer| (found, pointer))
    }

    /// Fresh memory. What waits is given back first when it would exceed the most that was ever in use, or when the
    /// device has no more: so the pool holds at most twice what the work needs.
    fn allocate(&self, class: usize, what: &'static str) -> Result<u64> {
        let (in_use, allocated) = (self.in_use.load(Relaxed), self.allocated.load(Relaxed));
        if allocated + class - in_use > self.peak.load(Relaxed).max(in_use + class) {
            self.release()?;
        }
        let pointer = match self.device.allocate(class, what) {
            Err(KernelError::OutOfMemory { .. }) => {
                self.release()?;
                self.device.allocate(class, what)?
            }
            other => other?,
        };
        self.allocated.fetch_add(class, Relaxed);
        Ok(pointer)
    }

    /// Gives all waiting memory back to the device.
    fn release(&self) -> Result<()> {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for (class, blocks) in waiting {
            for pointer in blocks {
                self.allocated.fetch_sub(class, Relaxed);
                self.device.free(pointer)?;
            }
        }
        Ok(())
    }

    fn put_back(&self, class: usize, pointer: u64) {
        self.in_use.fetch_sub(class, Relaxed);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).entry(class).or_default().push(pointer);
    }

    /// Bytes in use now, at most, and in all.
    pub(super) fn memory(&self) -> MemoryUse {
        MemoryUse {
            in_use: self.in_use.load(Relaxed),
            peak: self.peak.load(Relaxed),
            allocated: self.allocated.load(Relaxed),
        }
    }

    /// Forgets the peak: from here on it is what is in use now.
    pub(super) fn reset_peak(&self) {
        self.peak.store(self.in_use.load(Relaxed), Relaxed);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!(%error, "device memory was not given back");
        }
    }
}

/// Device memory, back in its pool when dropped. Aligned to 256 bytes; never null, even when empty.
#[derive(Debug)]
pub(super) struct Buffer {
    pointer: u64,
    bytes: usize,
    class: usize,
    home: Arc<Pool>,
}

impl Buffer {
    /// Device address.
    pub(super) fn ptr(&self) -> u64 {
        self.pointer
    }

    /// Whether the stream of that very device orders what is done with it.
    pub(super) fn is_of(&self, device: &Arc<Device>) -> bool {
        Arc::ptr_eq(&self.home.device, device)
    }

    /// Bytes asked for.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.put_back(self.class, self.pointer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_is_asked_and_waste_little() {
        for bytes in (0..70_000).step_by(7).chain([1_234_567, 1 << 20, (1 << 20) + 1, 3 << 30]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(SMALLEST));
            assert!(class <= bytes * 9 / 8 + SMALLEST, "{bytes} -> {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
