//! Occupancy by threads, blocks and shared memory. Registers, which ptxas assigns, are not counted.

use std::ffi::{c_int, c_uint};

use crate::{
    abi::{CUresult, Error, Handle, put},
    call::in_context,
    device::Device,
    properties::{
        BLOCKS_PER_MULTIPROCESSOR, MULTIPROCESSORS, SHARED_PER_MULTIPROCESSOR, SHARED_RESERVED, THREADS_PER_BLOCK,
        THREADS_PER_MULTIPROCESSOR,
    },
};

/// `CUoccupancyB2DSize`: dynamic shared memory as a function of the block size.
type SharedOfBlock = Option<unsafe extern "C" fn(c_int) -> usize>;

/// Static shared memory of a kernel and its thread limit.
fn limits(device: &Device, function: Handle) -> Result<(usize, usize), Error> {
    let function = device.functions.get(function)?;
    let module = function.module()?;
    let kernel = function.kernel(&module);
    Ok((kernel.shared_bytes, kernel.max_threads.min(THREADS_PER_BLOCK as usize)))
}

fn blocks(threads: usize, shared: usize) -> usize {
    let warps = threads.div_ceil(32) * 32;
    let by_shared = SHARED_PER_MULTIPROCESSOR / (shared + SHARED_RESERVED);
    (THREADS_PER_MULTIPROCESSOR / warps.max(1)).min(BLOCKS_PER_MULTIPROCESSOR).min(by_shared)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    count: *mut c_int,
    function: Handle,
    block: c_int,
    dynamic_shared: usize,
    _flags: c_uint,
) -> CUresult {
    in_context(|device| {
        let (shared, most) = limits(device, function)?;
        let threads = usize::try_from(block).ok().filter(|&threads| threads > 0).ok_or(Error::InvalidValue)?;
        let fit = if threads > most { 0 } else { blocks(threads, shared + dynamic_shared) };
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(count, fit as c_int) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    count: *mut c_int,
    function: Handle,
    block: c_int,
    dynamic_shared: usize,
) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(count, function, block, dynamic_shared, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: *mut usize,
    function: Handle,
    count: c_int,
    _block: c_int,
) -> CUresult {
    in_context(|device| {
        let (shared, _) = limits(device, function)?;
        let count = usize::try_from(count).ok().filter(|&count| count > 0).ok_or(Error::InvalidValue)?;
        let share = (SHARED_PER_MULTIPROCESSOR / count).saturating_sub(SHARED_RESERVED + shared);
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(bytes, share) }
    })
}

/// The block size, in whole warps, that keeps the most threads resident; of several the largest.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: *mut c_int,
    block: *mut c_int,
    function: Handle,
    shared_of_block: SharedOfBlock,
    dynamic_shared: usize,
    block_limit: c_int,
    _flags: c_uint,
) -> CUresult {
    in_context(|device| {
        let (shared, most) = limits(device, function)?;
        let most = usize::try_from(block_limit).ok().filter(|&limit| limit > 0).map_or(most, |limit| limit.min(most));
        let resident = |threads: usize| {
            let dynamic = match shared_of_block {
                // SAFETY: the caller passes a function of this kind.
                Some(f) => unsafe { f(threads as c_int) },
                None => dynamic_shared,
            };
            blocks(threads, shared + dynamic)
        };
        let sizes = (1..=most.div_ceil(32)).map(|warps| (warps * 32).min(most));
        let best = sizes.max_by_key(|&threads| (resident(threads) * threads, threads)).ok_or(Error::InvalidValue)?;
        // SAFETY: the caller passes valid pointers.
        unsafe { put(block, best as c_int).and(put(grid, (resident(best) * MULTIPROCESSORS) as c_int)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: *mut c_int,
    block: *mut c_int,
    function: Handle,
    shared_of_block: SharedOfBlock,
    dynamic_shared: usize,
    block_limit: c_int,
) -> CUresult {
    let shared = dynamic_shared;
    // SAFETY: the same contract.
    unsafe { cuOccupancyMaxPotentialBlockSizeWithFlags(grid, block, function, shared_of_block, shared, block_limit, 0) }
}
