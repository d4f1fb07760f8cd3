//! Copies between host and device, through a pinned staging buffer.
//!
//! Copies from ordinary memory are slow and hold the caller up; from pinned memory they run beside the host. Uploads
//! write into one half of the staging buffer, converting on the way, while the device may still read the other; an
//! event tells when a half is free again. Reads wait for the device.

use super::device::{Device, failed};
use super::memory::Buffer;
use super::{CudaBackend, Storage};
use crate::contract::Result;
use cudarc::driver::result;
use cudarc::driver::sys::{CUevent, CUevent_flags};
use half::bf16;
use std::ffi::c_void;
use std::sync::PoisonError;

/// Bytes of a half of the staging buffer.
const HALF: usize = 4 << 20;
/// What lies in staging starts at multiples of this.
const ALIGNMENT: usize = 64;

/// Types of which every bit pattern is a value.
pub(super) trait Plain: Copy + Default + 'static {}

impl Plain for f32 {}
impl Plain for u32 {}
impl Plain for i64 {}
impl Plain for f64 {}
impl Plain for bf16 {}

/// Pinned host memory in two halves.
#[derive(Debug)]
pub(super) struct Staging {
    host: *mut c_void,
    /// Recorded when the half was last left: it is free once the event has happened.
    left: [CUevent; 2],
    half: usize,
    filled: usize,
}

// SAFETY: host memory and event handles, which any thread may use; access is serialized by the device's lock.
unsafe impl Send for Staging {}

impl Staging {
    /// The device's context is current.
    pub(super) fn new() -> Result<Self> {
        // Flags 0: cached by the CPU, because it is read too.
        // SAFETY: plain allocation, freed in `drop`.
        let host = unsafe { result::malloc_host(2 * HALF, 0) }.map_err(failed("pinning host memory"))?;
        let event = || result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed("making an event"));
        Ok(Self { host, left: [event()?, event()?], half: 0, filled: 0 })
    }

    /// Room for `count` elements that the device no longer reads; at most [`HALF`] bytes.
    fn room<T: Plain>(&mut self, device: &Device, count: usize) -> Result<&mut [T]> {
        let bytes = (count * size_of::<T>()).next_multiple_of(ALIGNMENT);
        if self.filled + bytes > HALF {
            // SAFETY: the events and the stream are alive. An event that was never recorded counts as having happened.
            unsafe {
                result::event::record(self.left[self.half], device.stream()).map_err(failed("recording an event"))?;
                self.half = 1 - self.half;
                result::event::synchronize(self.left[self.half]).map_err(failed("waiting for a copy"))?;
            }
            self.filled = 0;
        }
        let start = self.half * HALF + self.filled;
        self.filled += bytes;
        // SAFETY: `start + count * size_of::<T>()` is within the allocation, `start` is aligned to any `T`, any bits
        // make a
        // `T`, and the device is done with this stretch.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.host.cast::<u8>().add(start).cast::<T>(), count) })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`; the owner has waited for the device. A failure leaves nothing to do.
        unsafe {
            let _ = result::free_host(self.host);
            for event in self.left {
                let _ = result::event::destroy(event);
            }
        }
    }
}

impl Device {
    /// Writes `convert(values)` to device memory at `to`, which has room for it.
    fn write<S: Copy, D: Plain>(&self, to: u64, values: &[S], convert: impl Fn(&[S], &mut [D])) -> Result<()> {
        self.bind()?;
        let mut staging = self.staging().lock().unwrap_or_else(PoisonError::into_inner);
        let mut to = to;
        for chunk in values.chunks(HALF / size_of::<D>()) {
            let room = staging.room::<D>(self, chunk.len())?;
            convert(chunk, room);
            // SAFETY: the caller's buffer has room; the staging stays untouched until the copy has happened.
            unsafe { result::memcpy_htod_async(to, room, self.stream()) }.map_err(failed("copying to the device"))?;
            to += size_of_val(room) as u64;
        }
        Ok(())
    }

    /// Reads device memory at `from` into `values`, converting; waits for all that was enqueued.
    fn read<D: Plain, S>(&self, from: u64, values: &mut [S], convert: impl Fn(&[D], &mut [S])) -> Result<()> {
        self.bind()?;
        let mut staging = self.staging().lock().unwrap_or_else(PoisonError::into_inner);
        let mut from = from;
        for chunk in values.chunks_mut(HALF / size_of::<D>()) {
            let room = staging.room::<D>(self, chunk.len())?;
            // SAFETY: the caller's buffer is as long; the copy is waited for before the staging is looked at.
            unsafe { result::memcpy_dtoh_async(room, from, self.stream()) }
                .map_err(failed("copying from the device"))?;
            self.synchronize()?;
            convert(room, chunk);
            from += size_of_val(room) as u64;
        }
        Ok(())
    }

    /// Sets `bytes` bytes to zero.
    pub(super) fn zero(&self, pointer: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's buffer is as long.
        unsafe { result::memset_d8_async(pointer, 0, bytes, self.stream()) }.map_err(failed("zeroing device memory"))
    }

    /// Copies `bytes` bytes on the device.
    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's buffers are as long, and do not overlap.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream()) }.map_err(failed("copying on the device"))
    }
}

fn narrow(values: &[f32], out: &mut [bf16]) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out = bf16::from_f32(value);
    }
}

fn widen(values: &[bf16], out: &mut [f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = value.to_f32();
    }
}

impl CudaBackend {
    /// A new buffer with these values.
    pub(super) fn upload<T: Plain>(&self, values: &[T], what: &'static str) -> Result<Buffer> {
        let buffer = self.scratch(size_of_val(values), what)?;
        self.overwrite(&buffer, values)?;
        Ok(buffer)
    }

    /// A new buffer with these values, as `storage`.
    pub(super) fn upload_stored(&self, values: &[f32], storage: Storage, what: &'static str) -> Result<Buffer> {
        match storage {
            Storage::F32 => self.upload(values, what),
            Storage::Bf16 => {
                let buffer = self.scratch(values.len() * storage.bytes(), what)?;
                self.overwrite_halves(&buffer, values)?;
                Ok(buffer)
            }
        }
    }

    /// Overwrites a buffer of as many elements.
    pub(super) fn overwrite<T: Plain>(&self, buffer: &Buffer, values: &[T]) -> Result<()> {
        debug_assert!(size_of_val(values) <= buffer.bytes());
        self.device().write(buffer.ptr(), values, |from: &[T], to: &mut [T]| to.copy_from_slice(from))
    }

    /// Overwrites a buffer of as many bf16, rounding.
    pub(super) fn overwrite_halves(&self, buffer: &Buffer, values: &[f32]) -> Result<()> {
        debug_assert!(values.len() * size_of::<bf16>() <= buffer.bytes());
        self.device().write(buffer.ptr(), values, narrow)
    }

    /// Reads a buffer's first bf16.
    pub(super) fn download_halves(&self, buffer: &Buffer, values: &mut [f32]) -> Result<()> {
        debug_assert!(values.len() * size_of::<bf16>() <= buffer.bytes());
        self.device().read(buffer.ptr(), values, widen)
    }

    /// Reads a buffer's first elements.
    pub(super) fn download<T: Plain>(&self, buffer: &Buffer, values: &mut [T]) -> Result<()> {
        debug_assert!(size_of_val(values) <= buffer.bytes());
        self.device().read(buffer.ptr(), values, |from: &[T], to: &mut [T]| to.copy_from_slice(from))
    }

    /// Reads a buffer in the backend's storage type.
    pub(super) fn download_stored(&self, buffer: &Buffer, values: &mut [f32]) -> Result<()> {
        match self.storage() {
            Storage::F32 => self.download(buffer, values),
            Storage::Bf16 => self.download_halves(buffer, values),
        }
    }
}
