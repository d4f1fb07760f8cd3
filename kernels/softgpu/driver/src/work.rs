//! What a stream can be asked to do, and the doing.

use std::{ffi::c_void, sync::Arc, time::Instant};

use ballast_softgpu::LaunchConfig;

use crate::{
    abi::{Error, error},
    call,
    device::Device,
    event::Event,
    module::LoadedModule,
    queue::Stream,
};

/// One end of a copy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// Memory known to the allocation table.
    Device(u64),
    /// The program's own memory, which it promised to keep until the copy is done.
    Host(u64),
}

/// A user's pointer on its way to the thread of a stream.
pub(crate) struct UserData(pub(crate) *mut c_void);

// SAFETY: the API promises no more than to hand the pointer back, on a thread of its own.
unsafe impl Send for UserData {}

/// A piece of work in the queue of a stream.
pub(crate) enum Work {
    /// A kernel, with its parameter buffer.
    Launch { module: Arc<LoadedModule>, kernel: usize, config: LaunchConfig, parameters: Vec<u8> },
    /// Bytes that were read from pageable memory when the copy was queued.
    Write { bytes: Vec<u8>, to: u64 },
    /// A copy between two places.
    Copy { from: Place, to: Place, bytes: usize },
    /// `memset`: the pattern, little end first, over and over.
    Fill { to: u64, pattern: [u8; 4], width: usize, count: usize },
    /// The end of `cuMemAllocAsync`'s memory.
    Free { address: u64 },
    /// `cuEventRecord`.
    Record { event: Arc<Event>, record: u64 },
    /// `cuStreamWaitEvent`: work of another stream up to a number.
    Wait { stream: Arc<Stream>, upto: u64 },
    /// `cuLaunchHostFunc`.
    Host { function: unsafe extern "C" fn(*mut c_void), data: UserData },
}

impl Work {
    /// Does it. After a fault nothing runs any more, as on a GPU; the queue just empties.
    pub(crate) fn run(self, device: &'static Device) {
        if device.healthy().is_err() {
            return;
        }
        match self {
            Self::Launch { module, kernel, config, parameters } => {
                launch(device, &module, kernel, &config, &parameters);
            }
            Self::Write { bytes, to } => {
                if reachable(device, Place::Device(to), bytes.len(), "copy to the device") {
                    // SAFETY: the table holds this range, and the vector is not part of it.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer(to), bytes.len()) };
                }
            }
            Self::Copy { from, to, bytes } => {
                if reachable(device, from, bytes, "copy from") && reachable(device, to, bytes, "copy to") {
                    // SAFETY: device ranges are in the table, host ranges are promised by the program.
                    unsafe { std::ptr::copy(pointer(from.address()), pointer(to.address()), bytes) };
                }
            }
            Self::Fill { to, pattern, width, count } => {
                if reachable(device, Place::Device(to), width * count, "memset") {
                    // SAFETY: the table holds this range, and no other reference to it exists.
                    let memory = unsafe { std::slice::from_raw_parts_mut(pointer(to), width * count) };
                    memory.chunks_exact_mut(width).for_each(|element| element.copy_from_slice(&pattern[..width]));
                }
            }
            Self::Free { address } => {
                if let Err(error) = device.free(address) {
                    device.raise(error, &format!("cuMemFreeAsync of {address:#x}, which is not allocated"));
                }
            }
            Self::Record { event, record } => event.happened(record, Instant::now()),
            Self::Wait { stream, upto } => stream.wait(upto),
            // SAFETY: the program gave function and data for this call.
            Self::Host { function, data } => call::as_host_function(|| unsafe { function(data.0) }),
        }
    }
}

impl Place {
    pub(crate) fn address(self) -> u64 {
        match self {
            Self::Device(address) | Self::Host(address) => address,
        }
    }
}

fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// Checks an end of a copy at the moment it happens: memory may have been freed since the copy was queued.
fn reachable(device: &Device, place: Place, bytes: usize, what: &str) -> bool {
    let Place::Device(address) = place else { return true };
    match device.table.check(address, bytes as u64, 1) {
        Ok(()) => true,
        Err(error) => {
            device.raise(Error::IllegalAddress, &format!("{what}: {error}"));
            false
        }
    }
}

fn launch(device: &Device, module: &LoadedModule, kernel: usize, config: &LaunchConfig, parameters: &[u8]) {
    let module = &module.module;
    let Some(kernel) = module.kernels().get(kernel) else { return };
    if device.is_to_fail() {
        device.raise(Error::IllegalAddress, &format!("{}: an illegal address, as ordered", kernel.name));
        return;
    }
    match ballast_softgpu::launch(kernel, module, &device.table, config, parameters, &device.settings) {
        Ok(counters) => {
            if let Some(ledger) = &device.ledger {
                ledger.add(&kernel.name, config, &counters);
            }
        }
        Err(fault) => {
            let code = u32::try_from(fault.kind.code()).ok().and_then(error).unwrap_or(Error::LaunchFailed);
            device.raise(code, &fault.to_string());
        }
    }
}
