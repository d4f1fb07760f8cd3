//! Device memory and page-locked memory of the host.

use std::{
    alloc::{Layout, alloc, dealloc},
    ffi::{c_uint, c_void},
};

use ballast_softgpu::AllocationError;

use crate::{
    abi::{CUdeviceptr, CUresult, Error, Handle, put},
    call::in_context,
    device::lock,
    work::Work,
};

/// Content of fresh memory: NaN in every float format.
const POISON: u8 = 0xFF;
/// Page-locked memory starts at a page.
const PAGE: usize = 4096;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize) -> CUresult {
    // SAFETY: the caller passes a valid pointer.
    in_context(|device| unsafe { put(address, device.allocate(bytes)?) })
}

/// Waits for all work first, as `cuMemFree` is documented to do implicitly: what is queued may still use the memory.
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: CUdeviceptr) -> CUresult {
    in_context(|device| {
        if address == 0 {
            return Ok(());
        }
        device.synchronize()?;
        device.free(address)
    })
}

/// The memory is there at once, but its poison is written when the stream comes to it: who uses it from another stream
/// without waiting loses what he wrote.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(address: *mut CUdeviceptr, bytes: usize, stream: Handle) -> CUresult {
    in_context(|device| {
        let stream = device.stream(stream)?;
        let to = device.allocate(bytes)?;
        device.enqueue(&stream, Work::Fill { to, pattern: [POISON; 4], width: 1, count: bytes })?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(address, to) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocFromPoolAsync(
    address: *mut CUdeviceptr,
    bytes: usize,
    _pool: Handle,
    stream: Handle,
) -> CUresult {
    // SAFETY: the same contract; there is one pool.
    unsafe { cuMemAllocAsync(address, bytes, stream) }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: CUdeviceptr, stream: Handle) -> CUresult {
    in_context(|device| {
        let stream = device.stream(stream)?;
        match device.table.find(address) {
            _ if address == 0 => Ok(()),
            Some((start, _)) if start == address && device.table.is_device(address) => {
                device.enqueue(&stream, Work::Free { address }).map(|_| ())
            }
            _ => Err(Error::InvalidValue),
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetAddressRange_v2(
    start: *mut CUdeviceptr,
    bytes: *mut usize,
    address: CUdeviceptr,
) -> CUresult {
    in_context(|device| {
        let (base, length) = device.table.find(address).ok_or(Error::NotFound)?;
        // SAFETY: null means that the caller does not want the value; otherwise it is valid.
        unsafe {
            if !start.is_null() {
                put(start, base)?;
            }
            if !bytes.is_null() {
                put(bytes, length as usize)?;
            }
        }
        Ok(())
    })
}

/// Flags (portable, mapped, write-combined) change nothing here: all page-locked memory is mapped, at its own address.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, _flags: c_uint) -> CUresult {
    in_context(|device| {
        let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| Error::InvalidValue)?;
        if bytes == 0 {
            return Err(Error::InvalidValue);
        }
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            return Err(Error::OutOfMemory);
        }
        // SAFETY: the allocation has that many bytes.
        unsafe { base.write_bytes(POISON, bytes) };
        let address = base.expose_provenance() as u64;
        lock(&device.pinned).insert(address, layout);
        // SAFETY: the memory lives until `cuMemFreeHost`, which takes it out of the table first.
        unsafe { device.table.register(address, bytes as u64) }.map_err(|_| Error::Unknown)?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(memory, base.cast()) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocHost_v2(memory: *mut *mut c_void, bytes: usize) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuMemHostAlloc(memory, bytes, 0) }
}

/// Waits for all work first, which may still use the memory.
#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(memory: *mut c_void) -> CUresult {
    in_context(|device| {
        device.synchronize()?;
        let layout = lock(&device.pinned).remove(&(memory.addr() as u64)).ok_or(Error::InvalidValue)?;
        device.table.unregister(memory.addr() as u64).map_err(|_| Error::Unknown)?;
        // SAFETY: it was allocated with this layout and is in no table any more.
        unsafe { dealloc(memory.cast(), layout) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostRegister_v2(memory: *mut c_void, bytes: usize, _flags: c_uint) -> CUresult {
    in_context(|device| {
        if bytes == 0 {
            return Err(Error::InvalidValue);
        }
        // SAFETY: the program keeps the memory until it unregisters it.
        match unsafe { device.table.register(memory.expose_provenance() as u64, bytes as u64) } {
            Ok(()) => Ok(()),
            Err(AllocationError::Overlap { .. }) => Err(Error::AlreadyRegistered),
            Err(_) => Err(Error::InvalidValue),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(memory: *mut c_void) -> CUresult {
    in_context(|device| {
        device.synchronize()?;
        device.table.unregister(memory.addr() as u64).map_err(|_| Error::NotRegistered)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    address: *mut CUdeviceptr,
    memory: *mut c_void,
    _flags: c_uint,
) -> CUresult {
    in_context(|device| {
        let host = memory.addr() as u64;
        if device.table.find(host).is_none() {
            return Err(Error::InvalidValue);
        }
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(address, host) }
    })
}

/// Host or device (attribute 2), device pointer (3), host pointer (4).
#[unsafe(no_mangle)]
unsafe extern "C" fn cuPointerGetAttribute(value: *mut c_void, number: u32, address: CUdeviceptr) -> CUresult {
    const HOST: c_uint = 1;
    const DEVICE: c_uint = 2;
    in_context(|device| {
        device.table.find(address).ok_or(Error::InvalidValue)?;
        let on_device = device.table.is_device(address);
        // SAFETY: the caller passes a pointer to what the attribute's documentation says.
        unsafe {
            match number {
                2 => put(value.cast::<c_uint>(), if on_device { DEVICE } else { HOST }),
                3 => put(value.cast::<CUdeviceptr>(), address),
                4 if !on_device => put(value.cast::<CUdeviceptr>(), address),
                _ => Err(Error::NotSupported),
            }
        }
    })
}
