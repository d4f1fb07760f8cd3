//! Copies and fills.
//!
//! Pageable memory of the host is treated as the API says: a copy to the device has read it when the call returns, a
//! copy from the device has written it. Page-locked memory is read and written when the stream gets there.

use std::ffi::c_void;

use crate::{
    abi::{CUdeviceptr, CUresult, Error, Handle},
    call::in_context,
    device::Device,
    work::{Place, Work},
};

/// Queues one transfer, after a check of its device ranges, and waits for it if it is to be synchronous.
fn transfer(device: &'static Device, work: Option<Work>, stream: Handle, wait: bool) -> Result<(), Error> {
    let stream = device.stream(stream)?;
    let Some(work) = work else { return Ok(()) };
    let number = device.enqueue(&stream, work)?;
    if wait {
        stream.wait(number);
        device.healthy()?;
    }
    Ok(())
}

/// Refuses a range that is not in one allocation.
fn check(device: &Device, address: CUdeviceptr, bytes: usize, what: &str) -> Result<(), Error> {
    device.table.check(address, bytes as u64, 1).map_err(|error| {
        eprintln!("softgpu: {what}: {error}");
        Error::InvalidValue
    })
}

fn to_device(device: &Device, to: CUdeviceptr, from: *const c_void, bytes: usize) -> Result<Option<Work>, Error> {
    if bytes == 0 {
        return Ok(None);
    }
    check(device, to, bytes, "copy to the device")?;
    let host = from.expose_provenance() as u64;
    if device.table.check(host, bytes as u64, 1).is_ok() {
        return Ok(Some(Work::Copy { from: Place::Device(host), to: Place::Device(to), bytes }));
    }
    if from.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller passes that many readable bytes.
    let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) }.to_vec();
    Ok(Some(Work::Write { bytes, to }))
}

/// The work, and whether the call has to wait for it.
fn to_host(device: &Device, to: *mut c_void, from: CUdeviceptr, bytes: usize) -> Result<(Option<Work>, bool), Error> {
    if bytes == 0 {
        return Ok((None, false));
    }
    check(device, from, bytes, "copy from the device")?;
    let host = to.expose_provenance() as u64;
    let pinned = device.table.check(host, bytes as u64, 1).is_ok();
    if to.is_null() {
        return Err(Error::InvalidValue);
    }
    let to = if pinned { Place::Device(host) } else { Place::Host(host) };
    Ok((Some(Work::Copy { from: Place::Device(from), to, bytes }), !pinned))
}

fn within(device: &Device, to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> Result<Option<Work>, Error> {
    if bytes == 0 {
        return Ok(None);
    }
    check(device, from, bytes, "copy from")?;
    check(device, to, bytes, "copy to")?;
    Ok(Some(Work::Copy { from: Place::Device(from), to: Place::Device(to), bytes }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: CUdeviceptr, from: *const c_void, bytes: usize) -> CUresult {
    in_context(|device| transfer(device, to_device(device, to, from, bytes)?, 0, true))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: CUdeviceptr,
    from: *const c_void,
    bytes: usize,
    stream: Handle,
) -> CUresult {
    in_context(|device| transfer(device, to_device(device, to, from, bytes)?, stream, false))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize) -> CUresult {
    in_context(|device| transfer(device, to_host(device, to, from, bytes)?.0, 0, true))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: CUdeviceptr,
    bytes: usize,
    stream: Handle,
) -> CUresult {
    in_context(|device| {
        let (work, wait) = to_host(device, to, from, bytes)?;
        transfer(device, work, stream, wait)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> CUresult {
    in_context(|device| transfer(device, within(device, to, from, bytes)?, 0, true))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: Handle) -> CUresult {
    in_context(|device| transfer(device, within(device, to, from, bytes)?, stream, false))
}

/// Queues a `memset` of `count` elements of `width` bytes. It is asynchronous even without a stream of its own.
fn fill(to: CUdeviceptr, pattern: u32, width: usize, count: usize, stream: Handle) -> CUresult {
    in_context(|device| {
        let bytes = count.checked_mul(width).ok_or(Error::InvalidValue)?;
        if !to.is_multiple_of(width as u64) {
            return Err(Error::InvalidValue);
        }
        if bytes > 0 {
            check(device, to, bytes, "memset")?;
        }
        let work = (bytes > 0).then_some(Work::Fill { to, pattern: pattern.to_le_bytes(), width, count });
        transfer(device, work, stream, false)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: CUdeviceptr, value: u8, count: usize) -> CUresult {
    fill(to, value.into(), 1, count, 0)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: CUdeviceptr, value: u8, count: usize, stream: Handle) -> CUresult {
    fill(to, value.into(), 1, count, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16_v2(to: CUdeviceptr, value: u16, count: usize) -> CUresult {
    fill(to, value.into(), 2, count, 0)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16Async(to: CUdeviceptr, value: u16, count: usize, stream: Handle) -> CUresult {
    fill(to, value.into(), 2, count, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32_v2(to: CUdeviceptr, value: u32, count: usize) -> CUresult {
    fill(to, value, 4, count, 0)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: CUdeviceptr, value: u32, count: usize, stream: Handle) -> CUresult {
    fill(to, value, 4, count, stream)
}
