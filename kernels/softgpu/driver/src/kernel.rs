//! Kernels: attributes and launches.

use std::{
    ffi::{c_int, c_void},
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use ballast_softgpu::{Kernel, LaunchConfig};

use crate::{
    abi::{CUresult, Error, Handle, put},
    call::in_context,
    device::Device,
    module::LoadedModule,
    properties::{BLOCK_LIMITS, GRID_LIMITS, SHARED_OPT_IN, SHARED_PER_BLOCK, THREADS_PER_BLOCK},
    work::Work,
};

/// What `cuModuleGetFunction` gives: a kernel of a module, for as long as that is loaded.
pub(crate) struct Function {
    module: Weak<LoadedModule>,
    index: usize,
    /// Dynamic shared memory that the program opted in for; until then what static memory leaves of 48 KiB.
    dynamic_limit: AtomicUsize,
}

impl Function {
    pub(crate) fn new(module: &Arc<LoadedModule>, index: usize) -> Self {
        let used = module.module.kernels()[index].shared_bytes;
        let dynamic_limit = AtomicUsize::new(SHARED_PER_BLOCK.saturating_sub(used));
        Self { module: Arc::downgrade(module), index, dynamic_limit }
    }

    /// The module, unless it was unloaded.
    pub(crate) fn module(&self) -> Result<Arc<LoadedModule>, Error> {
        self.module.upgrade().ok_or(Error::InvalidHandle)
    }

    /// The kernel in its module.
    pub(crate) fn kernel<'a>(&self, module: &'a LoadedModule) -> &'a Kernel {
        &module.module.kernels()[self.index]
    }
}

/// `CUfunction_attribute`. How many registers a kernel has (4) is known to ptxas alone.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, number: u32, function: Handle) -> CUresult {
    in_context(|device| {
        let function = device.functions.get(function)?;
        let module = function.module()?;
        let kernel = function.kernel(&module);
        let found = match number {
            0 => kernel.max_threads,
            1 => kernel.shared_bytes,
            3 => kernel.local_bytes,
            6 => 80,
            8 => function.dynamic_limit.load(Ordering::Relaxed),
            _ => return Err(Error::NotSupported),
        };
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(value, c_int::try_from(found).map_err(|_| Error::Unknown)?) }
    })
}

/// Dynamic shared memory (8) has its effect; the carve-out of the cache (9) is a hint.
#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: Handle, number: u32, value: c_int) -> CUresult {
    in_context(|device| {
        let function = device.functions.get(function)?;
        let module = function.module()?;
        match (number, usize::try_from(value)) {
            (8, Ok(bytes)) if bytes + function.kernel(&module).shared_bytes <= SHARED_OPT_IN => {
                function.dynamic_limit.store(bytes, Ordering::Relaxed);
                Ok(())
            }
            (9, _) if (-1..=100).contains(&value) => Ok(()),
            (8 | 9, _) => Err(Error::InvalidValue),
            _ => Err(Error::NotSupported),
        }
    })
}

/// A hint.
#[unsafe(no_mangle)]
extern "C" fn cuFuncSetCacheConfig(function: Handle, _config: u32) -> CUresult {
    in_context(|device| device.functions.get(function).map(|_| ()))
}

/// Refuses what a GPU would refuse at the call, and queues the rest.
///
/// # Safety
/// `arguments` holds a pointer to each argument of the kernel.
unsafe fn launch(
    device: &'static Device,
    function: Handle,
    config: LaunchConfig,
    stream: Handle,
    arguments: *mut *mut c_void,
) -> Result<(), Error> {
    let function = device.functions.get(function)?;
    let module = function.module()?;
    let kernel = function.kernel(&module);
    let stream = device.stream(stream)?;
    let within = |size: [u32; 3], limits: [u32; 3]| size.iter().zip(limits).all(|(&n, most)| (1..=most).contains(&n));
    let threads: u64 = config.block.iter().map(|&n| u64::from(n)).product();
    if !within(config.grid, GRID_LIMITS) || !within(config.block, BLOCK_LIMITS) || threads > THREADS_PER_BLOCK.into() {
        return Err(Error::InvalidValue);
    }
    if config.dynamic_shared_bytes as usize > function.dynamic_limit.load(Ordering::Relaxed) {
        return Err(Error::InvalidValue);
    }
    if threads > kernel.max_threads as u64 {
        return Err(Error::OutOfResources);
    }
    // SAFETY: the caller's promise.
    let parameters = unsafe { parameters(kernel, arguments) }?;
    let work = Work::Launch { module: Arc::clone(&module), kernel: function.index, config, parameters };
    device.enqueue(&stream, work).map(|_| ())
}

/// The parameter buffer: each argument, of the size that the PTX says, at its place.
///
/// # Safety
/// `arguments` holds a pointer to each argument of the kernel.
unsafe fn parameters(kernel: &Kernel, arguments: *mut *mut c_void) -> Result<Vec<u8>, Error> {
    let mut buffer = vec![0; kernel.param_bytes];
    if arguments.is_null() && !kernel.params.is_empty() {
        return Err(Error::InvalidValue);
    }
    for (i, param) in kernel.params.iter().enumerate() {
        // SAFETY: there is a pointer for each parameter.
        let argument = unsafe { arguments.add(i).read() };
        if argument.is_null() {
            return Err(Error::InvalidValue);
        }
        // SAFETY: it points to a value of the parameter's size.
        let bytes = unsafe { std::slice::from_raw_parts(argument.cast::<u8>(), param.size) };
        buffer[param.offset..param.offset + param.size].copy_from_slice(bytes);
    }
    Ok(buffer)
}

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "the driver API's own signature")]
unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared_bytes: u32,
    stream: Handle,
    arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    in_context(|device| {
        if !extra.is_null() {
            return Err(Error::NotSupported);
        }
        let grid = [grid_x, grid_y, grid_z];
        let config = LaunchConfig { grid, block: [block_x, block_y, block_z], dynamic_shared_bytes };
        // SAFETY: the caller passes a pointer for each argument.
        unsafe { launch(device, function, config, stream, arguments) }
    })
}

/// `CUlaunchConfig`.
#[repr(C)]
struct CUlaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared_bytes: u32,
    stream: Handle,
    attributes: *mut c_void,
    attribute_count: u32,
}

/// Launch attributes (clusters, cooperative launches, ...) are refused rather than ignored.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernelEx(
    config: *const CUlaunchConfig,
    function: Handle,
    arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    in_context(|device| {
        // SAFETY: the caller passes null or a valid pointer.
        let config = unsafe { config.as_ref() }.ok_or(Error::InvalidValue)?;
        if config.attribute_count != 0 || !extra.is_null() {
            return Err(Error::NotSupported);
        }
        let CUlaunchConfig { grid, block, dynamic_shared_bytes, stream, .. } = *config;
        // SAFETY: the caller passes a pointer for each argument.
        unsafe { launch(device, function, LaunchConfig { grid, block, dynamic_shared_bytes }, stream, arguments) }
    })
}
