//! A device: its context, the one stream that all but collectives runs on, its memory, and launches.

use super::arguments::{Arg, Grid};
use super::libraries::Library;
use super::modules::{self, Modules};
use super::transfer::Staging;
use crate::KernelError;
use crate::contract::Result;
use cudarc::driver::sys::{CUdevice_attribute, CUresult, CUstream, cuDriverGetVersion, cuStreamQuery};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use std::ffi::c_void;
use std::fmt::Display;
use std::sync::{Arc, Mutex, OnceLock};

/// One CUDA device with a stream of ours.
///
/// cudarc's tracking of buffers with events is off: there is one stream, and its order is all the order there is.
/// Collectives have another, which [`super::nccl`] keeps in order.
#[derive(Debug)]
pub(super) struct Device {
    // In the order in which they go.
    staging: Mutex<Staging>,
    modules: Modules,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    name: String,
    driver: (i32, i32),
    shared_bytes: usize,
    /// Why nothing may be done with it any more.
    condemned: OnceLock<&'static str>,
}

/// Turns a failure of the driver into ours.
pub(super) fn failed(what: impl Display) -> impl FnOnce(DriverError) -> KernelError {
    move |error| KernelError::Device(format!("{what}: {}", words(error)))
}

/// Turns a refusal of the driver, which another try would meet again, into ours.
pub(super) fn unusable(what: impl Display) -> impl FnOnce(DriverError) -> KernelError {
    move |error| KernelError::Unusable(format!("{what}: {}", words(error)))
}

/// What the driver says of a failure.
pub(super) fn words(error: DriverError) -> String {
    // The driver itself knows its words.
    let text = Library::Driver.is_present().then(|| error.error_string().ok()).flatten();
    let text = text.and_then(|text| text.to_str().ok()).unwrap_or("unknown error");
    format!("{text} ({:?})", error.0)
}

/// The newest CUDA version that the driver knows. The driver is there.
pub(super) fn driver_version() -> Result<(i32, i32)> {
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { cuDriverGetVersion(&raw mut version) }.result().map_err(failed("asking for the driver's version"))?;
    Ok((version / 1000, version % 1000 / 10))
}

impl Device {
    /// Opens device number `ordinal`.
    ///
    /// # Errors
    /// [`KernelError::Unusable`] when it cannot be used and another try would not change that: no driver, no such
    /// device, no kernels for it. [`KernelError::Device`] when it fails.
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        Library::Driver.require()?;
        result::init().map_err(unusable("starting the driver"))?;
        let count = CudaContext::device_count().map_err(unusable("counting devices"))?;
        if ordinal >= count.max(0) as usize {
            return Err(KernelError::Unusable(format!("there is no device cuda:{ordinal}; the driver finds {count}")));
        }
        let context = CudaContext::new(ordinal).map_err(failed(format_args!("opening cuda:{ordinal}")))?;
        let (major, minor) = context.compute_capability().map_err(failed("reading the compute capability"))?;
        let name = context.name().map_err(failed("reading the device's name"))?;
        modules::require_kernels((major, minor))
            .map_err(|why| KernelError::Unusable(format!("cuda:{ordinal}, {name}: {why}")))?;
        // SAFETY: nothing is allocated yet; all work goes to one stream, or is ordered by events of ours.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let most_shared = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared_bytes = context.attribute(most_shared).map_err(failed("reading the size of shared memory"))?;
        let (modules, staging) = (Modules::new(major, minor), Mutex::new(Staging::new()?));
        let (shared_bytes, condemned) = (shared_bytes.max(0) as usize, OnceLock::new());
        Ok(Self { context, stream, modules, staging, name, driver: driver_version()?, shared_bytes, condemned })
    }

    /// Name, compute capability and driver, as the numerics fingerprint has them.
    pub(super) fn description(&self) -> String {
        let (major, minor) = self.modules.capability();
        format!("{} sm_{major}{minor}, driver of CUDA {}.{}", self.name, self.driver.0, self.driver.1)
    }

    /// Most shared memory that a block may have.
    pub(super) fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// The stream of all work.
    pub(super) fn stream(&self) -> CUstream {
        self.stream.cu_stream()
    }

    /// Ends all use of the device by this process: something is left on it that may write to memory of ours. Every later
    /// call fails with this reason, which is returned.
    ///
    /// The device is never closed then: to free pinned memory or a context the driver waits for all work, and so for ever.
    pub(super) fn condemn(self: &Arc<Self>, why: &'static str) -> KernelError {
        let why = self.condemned.get_or_init(|| {
            std::mem::forget(Arc::clone(self));
            why
        });
        KernelError::Device((*why).to_owned())
    }

    /// Whether nothing may wait for it any more.
    pub(super) fn is_condemned(&self) -> bool {
        self.condemned.get().is_some()
    }

    /// Makes this device's context the calling thread's.
    pub(super) fn bind(&self) -> Result<()> {
        if let Some(why) = self.condemned.get() {
            return Err(KernelError::Device((*why).to_owned()));
        }
        self.context.bind_to_thread().map_err(failed("an earlier call failed"))
    }

    /// Another stream, which this one's order does not bind.
    pub(super) fn new_stream(&self) -> std::result::Result<Arc<CudaStream>, DriverError> {
        self.context.new_stream()
    }

    /// The end of all that was enqueued so far, for another stream to wait for.
    pub(super) fn record(&self) -> std::result::Result<CudaEvent, DriverError> {
        self.stream.record_event(None)
    }

    /// Whether the stream of all work has met no failure so far. Never waits. The device's context is current.
    pub(super) fn check(&self) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        match unsafe { cuStreamQuery(self.stream()) }.result() {
            Ok(()) | Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => Ok(()),
            Err(error) => Err(failed("an earlier call failed")(error)),
        }
    }

    /// Waits for all that was enqueued.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream()) }.map_err(failed("waiting for the device"))
    }

    pub(super) fn staging(&self) -> &Mutex<Staging> {
        &self.staging
    }

    /// Device memory, aligned to 256 bytes.
    pub(super) fn allocate(&self, bytes: usize, what: &'static str) -> Result<u64> {
        self.bind()?;
        // SAFETY: plain allocation; whoever asked frees it once.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(pointer) => Ok(pointer),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(KernelError::OutOfMemory { requested: bytes, what })
            }
            Err(error) => Err(failed(format_args!("allocating {bytes} bytes for {what}"))(error)),
        }
    }

    /// Gives memory of [`Device::allocate`] back, once everything that was enqueued is done with it.
    pub(super) fn free(&self, pointer: u64) -> Result<()> {
        self.synchronize()?;
        // SAFETY: `pointer` came from `allocate`, and no enqueued work uses it any more.
        unsafe { result::free_sync(pointer) }.map_err(failed("freeing device memory"))
    }

    /// Free and total bytes of the device.
    pub(super) fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(failed("asking for free memory"))
    }

    /// Enqueues a kernel. A launch of no blocks does nothing.
    pub(super) fn launch(&self, file: &'static str, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.bind()?;
        let function = self.modules.function(file, kernel, grid.shared_bytes)?;
        let mut values: Vec<u64> = args.iter().map(|arg| arg.bits()).collect();
        let mut parameters: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>()).collect();
        let [x, y, z] = grid.blocks;
        // SAFETY: each parameter points at a value of its size (the low bytes, on a little-endian host), which the
        // driver copies before it returns; that they are what the kernel takes is between the family's file and its
        // .cu.
        let launched = unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (grid.threads, 1, 1),
                grid.shared_bytes,
                self.stream(),
                &mut parameters,
            )
        };
        launched.map_err(failed(format_args!("launching {kernel} of {file}.cu")))
    }
}

impl Drop for Device {
    /// Waits: what the fields own may still be in use.
    fn drop(&mut self) {
        if let Err(error) = self.synchronize() {
            tracing::warn!(%error, "the device failed before it was closed");
        }
    }
}
