//! The CUDA backend: bf16 or f32 storage, f32 arithmetic, one stream.
//!
//! One module an operation family, beside its kernels in `kernels/cuda/<family>.cu`: checks of the operands and the
//! shape of the launch. Plain products go to cuBLASLt ([`blas`]). All of it runs on one stream of ours, in the order
//! of the calls; the host waits only where it reads.
//!
//! [`nccl`] joins the backends of several processes: its collectives have a stream of their own.
//!
//! Nothing is linked: the driver and cuBLASLt are opened when the first backend is made, and one that is missing is an
//! error that says how to get it ([`libraries`]).

mod algorithms;
mod arguments;
mod attention;
mod backend;
#[allow(unsafe_code)] // Calls into cuBLASLt.
mod blas;
mod buffers;
#[allow(unsafe_code)] // Calls into the driver.
mod device;
mod fixed;
mod footprint;
mod gated;
mod head;
#[allow(unsafe_code)] // Opens libraries.
mod libraries;
mod linear;
mod lora;
mod memory;
#[allow(unsafe_code)] // Calls into the driver.
mod modules;
pub mod nccl;
mod norm;
mod optimizer;
#[allow(unsafe_code)] // Asks libraries.
mod probe;
mod rotary;
mod rows;
mod team;
#[allow(unsafe_code)] // Calls into the driver.
mod transfer;
mod weights;

pub use crate::Storage;
pub use crate::arena::MemoryUse;
pub use buffers::{Cache, HalfVector, IndexVector, IntegerVector, Matrix, Packing, Vector};
pub use footprint::CudaFootprint;
pub use libraries::Library;
pub use modules::kernels_for;
pub use probe::{DeviceProbe, Probe, probe};
pub use weights::{FrozenLinear, RotaryTable, Table};

use crate::check;
use crate::contract::Result;
use arguments::{Arg, Grid};
use memory::Buffer;
use std::sync::Arc;

/// A CUDA device as a backend.
#[derive(Debug)]
pub struct CudaBackend {
    storage: Storage,
    memory: Arc<memory::Memory>,
    blas: blas::Blas,
    tables: fixed::Tables,
}

impl CudaBackend {
    /// A backend on device number `ordinal`, storing activations and frozen weights as `storage`.
    ///
    /// # Errors
    /// [`crate::KernelError::Unusable`] when a library is missing or there is no such device,
    /// [`crate::KernelError::Device`] when it fails.
    pub fn new(ordinal: usize, storage: Storage) -> Result<Self> {
        let device = Arc::new(device::Device::open(ordinal)?);
        let memory = Arc::new(memory::Memory::new(device));
        let blas = blas::Blas::new(&memory)?;
        Ok(Self { storage, blas, tables: fixed::Tables::default(), memory })
    }

    /// The storage type of activations.
    #[must_use]
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Sizes of its memory.
    #[must_use]
    pub fn footprint(&self) -> CudaFootprint {
        CudaFootprint { storage: self.storage }
    }

    /// Free and total bytes of the device, other processes' use counted.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`] when the driver fails.
    pub fn device_memory(&self) -> Result<(usize, usize)> {
        self.device().memory()
    }

    /// Takes `bytes` bytes from the device in one piece, in which buffers lie from here on.
    ///
    /// To be called when all is loaded that stays (weights, adapter, moments), with what the largest micro-batch takes.
    /// Before, and if never called, each buffer is an allocation of its own, which is slow but lets a checker see every
    /// access outside a buffer. Called again, it does nothing where enough is reserved.
    ///
    /// # Errors
    /// [`crate::KernelError::OutOfMemory`] when the device has no such piece.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        self.memory.reserve(bytes)
    }

    /// Bytes in buffers, scratch and frozen weights.
    #[must_use]
    pub fn memory(&self) -> MemoryUse {
        self.memory.usage()
    }

    /// Starts measuring [`MemoryUse::peak`] anew.
    pub fn reset_peak_memory(&self) {
        self.memory.reset_peak();
    }

    /// All that may change a bit.
    fn description(&self) -> Result<String> {
        Ok(format!(
            "cuda {}; {}; {}, algorithms {:016x}",
            self.storage.suffix(),
            self.device().description(),
            self.blas.description(),
            algorithms::hash(self)?
        ))
    }

    fn device(&self) -> &device::Device {
        self.memory.device()
    }

    /// Enqueues kernel `kernel` of `kernels/cuda/<file>.cu`; a `typed` one exists per storage type. The arguments are
    /// the kernel's parameters, in order, and what they point at must be as large as the kernel takes it to be.
    fn launch(&self, file: &'static str, kernel: &str, typed: bool, grid: Grid, args: &[Arg]) -> Result<()> {
        if typed {
            self.device().launch(file, &format!("{kernel}_{}", self.storage.suffix()), grid, args)
        } else {
            self.device().launch(file, kernel, grid, args)
        }
    }

    /// Device memory of unspecified content, free for reuse when dropped: what was enqueued before still uses it
    /// safely, because whoever gets it next is enqueued later on the same stream.
    fn scratch(&self, bytes: usize, what: &'static str) -> Result<Buffer> {
        self.memory.take(bytes, what)
    }

    /// Device memory of zeros.
    fn zeros(&self, bytes: usize, what: &'static str) -> Result<Buffer> {
        let buffer = self.scratch(bytes, what)?;
        self.device().zero(buffer.ptr(), bytes)?;
        Ok(buffer)
    }
}
