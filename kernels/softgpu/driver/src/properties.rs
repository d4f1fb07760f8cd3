//! What the devices say of themselves: the figures of an A100 (compute capability 8.0), which PTX for `compute_80` is
//! written for. `SOFTGPU_DEVICES` of them share one address space, one schedule and one fault: a process uses one.

use std::ffi::{c_char, c_int};

use crate::{
    abi::{CUdevice, CUresult, Error, Handle, put},
    call::{in_context, initialized},
    context::known,
};

/// Shared memory per block without opting in for more.
pub(crate) const SHARED_PER_BLOCK: usize = 48 << 10;
/// The most that a kernel can opt in for.
pub(crate) const SHARED_OPT_IN: usize = 163 << 10;
/// Shared memory of a multiprocessor.
pub(crate) const SHARED_PER_MULTIPROCESSOR: usize = 164 << 10;
/// What the system takes of it for each block.
pub(crate) const SHARED_RESERVED: usize = 1 << 10;
pub(crate) const THREADS_PER_BLOCK: u32 = 1024;
pub(crate) const THREADS_PER_MULTIPROCESSOR: usize = 2048;
pub(crate) const BLOCKS_PER_MULTIPROCESSOR: usize = 32;
pub(crate) const MULTIPROCESSORS: usize = 108;
pub(crate) const BLOCK_LIMITS: [u32; 3] = [1024, 1024, 64];
pub(crate) const GRID_LIMITS: [u32; 3] = [i32::MAX as u32, 65535, 65535];

const NAME: &[u8] = b"Ballast software device (emulated, sm_80)";

/// The value of a `CUdevice_attribute`; `None` for those that nobody asks a compute device for.
fn attribute(number: u32, ordinal: CUdevice) -> Option<c_int> {
    let value = match number {
        1 => THREADS_PER_BLOCK as usize,
        2..=4 => BLOCK_LIMITS[number as usize - 2] as usize,
        5..=7 => GRID_LIMITS[number as usize - 5] as usize,
        8 => SHARED_PER_BLOCK,
        9 => 64 << 10,           // constant memory
        10 => 32,                // warp size
        11 => i32::MAX as usize, // pitch
        12 | 82 => 64 << 10,     // registers per block, per multiprocessor
        13 => 1_410_000,         // clock rate, kHz
        14 | 30 => 512,          // alignment of textures and surfaces
        15 | 19 | 31 | 41 => 1,  // overlap of copies, mapped host memory, concurrent kernels, unified addressing
        16 => MULTIPROCESSORS,
        17 | 18 | 20 | 35 => 0,     // kernel timeout, integrated, compute mode, TCC
        32 => 1,                    // ECC
        33 => ordinal as usize + 1, // PCI bus
        34 | 50 => 0,               // PCI device, domain
        36 => 1_215_000,            // memory clock rate, kHz
        37 => 5120,                 // width of the memory bus
        38 => 40 << 20,             // L2 cache
        39 => THREADS_PER_MULTIPROCESSOR,
        40 => 3, // copy engines
        75 => 8, // compute capability
        76 => 0,
        78..=80 => 1, // stream priorities, L1 caching
        81 => SHARED_PER_MULTIPROCESSOR,
        83..=86 => 0, // managed memory, several GPUs on a board, its group, native atomics on host memory
        87 => 2,      // single to double precision
        88 | 89 => 0, // pageable access, concurrent managed access
        90 | 91 => 1, // preemption, host pointers of registered memory
        95 | 96 => 0, // cooperative launches
        97 => SHARED_OPT_IN,
        99 => 1, // registration of host memory
        100..=105 | 107 | 110 | 112 | 113 | 114 | 116 | 120 | 124 | 125 | 127 | 128 => 0,
        106 => BLOCKS_PER_MULTIPROCESSOR,
        108 | 109 => 0, // persisting L2
        111 => SHARED_RESERVED,
        115 => 1, // memory pools
        _ => return None,
    };
    c_int::try_from(value).ok()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CUresult {
    // SAFETY: the caller passes a valid pointer.
    initialized(|device| unsafe { put(count, device.count) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) -> CUresult {
    initialized(|all| {
        known(all, ordinal)?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(device, ordinal) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, number: u32, ordinal: CUdevice) -> CUresult {
    initialized(|device| {
        known(device, ordinal)?;
        let found = attribute(number, ordinal).ok_or(Error::InvalidValue)?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, ordinal: CUdevice) -> CUresult {
    initialized(|device| {
        known(device, ordinal)?;
        let Some(room) = usize::try_from(length).ok().and_then(|length| length.checked_sub(1)) else {
            return Err(Error::InvalidValue);
        };
        let shown = &NAME[..room.min(NAME.len())];
        for (i, &byte) in shown.iter().chain(&[0]).enumerate() {
            // SAFETY: the caller gave room for `length` bytes, and at most that many are written.
            unsafe { put(name.wrapping_add(i), byte as c_char)? };
        }
        Ok(())
    })
}

/// An id that says what it is, with the ordinal in its last byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], ordinal: CUdevice) -> CUresult {
    initialized(|device| {
        known(device, ordinal)?;
        let mut id = *b"ballast-softgpu\0";
        id[15] = ordinal as u8;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(uuid, id) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; 16], ordinal: CUdevice) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuDeviceGetUuid_v2(uuid, ordinal) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, ordinal: CUdevice) -> CUresult {
    initialized(|device| {
        known(device, ordinal)?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(bytes, device.table.capacity_and_free().0 as usize) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CUresult {
    in_context(|device| {
        let (capacity, left) = device.table.capacity_and_free();
        // SAFETY: the caller passes valid pointers.
        unsafe { put(free, left as usize).and(put(total, capacity as usize)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut c_int, one: CUdevice, other: CUdevice) -> CUresult {
    initialized(|device| {
        known(device, one).and(known(device, other))?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(can, 0) }
    })
}

/// The one memory pool of each device.
const POOL: Handle = 0x80;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut Handle, ordinal: CUdevice) -> CUresult {
    initialized(|device| {
        known(device, ordinal)?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(pool, POOL) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetMemPool(pool: *mut Handle, ordinal: CUdevice) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuDeviceGetDefaultMemPool(pool, ordinal) }
}

/// Reuse (1 to 3) is off, nothing is held back (4), and what is reserved (5) is what is used (7).
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolGetAttribute(pool: Handle, number: u32, value: *mut u64) -> CUresult {
    initialized(|device| {
        if pool != POOL {
            return Err(Error::InvalidHandle);
        }
        let (capacity, free) = device.table.capacity_and_free();
        // SAFETY: the caller passes a pointer to what the attribute's documentation says: `int` or 64 bits.
        unsafe {
            match number {
                1..=3 => put(value.cast::<c_int>(), 0),
                4 => put(value, 0),
                5 | 7 => put(value, capacity - free),
                _ => Err(Error::NotSupported),
            }
        }
    })
}

/// Hints on reuse (1 to 3) and on memory to hold back (4) change no result; high-water marks (6, 8) are not kept.
#[unsafe(no_mangle)]
extern "C" fn cuMemPoolSetAttribute(pool: Handle, number: u32, _value: *mut u64) -> CUresult {
    initialized(|_| match number {
        _ if pool != POOL => Err(Error::InvalidHandle),
        1..=4 => Ok(()),
        _ => Err(Error::NotSupported),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolTrimTo(pool: Handle, _keep: usize) -> CUresult {
    initialized(|_| if pool == POOL { Ok(()) } else { Err(Error::InvalidHandle) })
}
