//! A loaded module: its kernels and its global variables.

use crate::{
    allocation::{AllocationError, AllocationTable},
    decode::{decode, layout},
    ir::Program,
    ptx::{
        parser,
        syntax::{Function, Source, Space},
    },
};
use std::{collections::HashMap, ptr::with_exposed_provenance_mut};

/// Threads that a block may have if the kernel does not say.
const DEFAULT_MAX_THREADS: usize = 1024;
/// Dynamic shared memory starts at a multiple of this.
const SHARED_ALIGN: usize = 128;

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
    pub(crate) dynamic_shared_start: usize,
    pub(crate) program: Program,
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
    /// Device address; 0 until it is placed.
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
        let source = parser::parse(ptx)?;
        let globals = globals(&source)?;
        let index = globals.iter().enumerate().map(|(at, global)| (global.name.clone(), at)).collect();
        let entries = source.functions.iter().filter(|function| function.is_kernel);
        let kernels = entries.map(|entry| kernel(&source, entry, &index)).collect::<Result<_, _>>()?;
        Ok(Self { kernels, globals })
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
            let start = with_exposed_provenance_mut::<u8>(global.address as usize);
            // SAFETY: the allocation has `size` bytes, and `initial` is no longer than that.
            unsafe {
                start.write_bytes(0, global.size);
                start.copy_from_nonoverlapping(global.initial.as_ptr(), global.initial.len());
            }
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

fn globals(source: &Source) -> Result<Vec<Global>, LoadError> {
    let variables = source.variables.iter().filter(|v| matches!(v.space, Space::Global | Space::Const));
    let globals = variables.map(|variable| {
        let message = format!("variable {} is defined elsewhere", variable.name);
        let size = variable.size.ok_or(LoadError { line: variable.line, message })?;
        let (name, align, initial) = (variable.name.clone(), variable.align, variable.initial.clone());
        Ok(Global { name, size, align, initial, address: 0 })
    });
    globals.collect()
}

fn kernel(source: &Source, entry: &Function, globals: &HashMap<String, usize>) -> Result<Kernel, LoadError> {
    let decoded = decode(source, entry, globals)?;
    let (offsets, param_bytes) = layout(&entry.params);
    let params = entry.params.iter().zip(offsets);
    Ok(Kernel {
        name: entry.name.clone(),
        params: params
            .map(|(param, offset)| Param { offset, size: param.size.unwrap_or(0), align: param.align })
            .collect(),
        param_bytes,
        shared_bytes: decoded.shared_bytes,
        max_threads: entry.max_threads.unwrap_or(DEFAULT_MAX_THREADS),
        local_bytes: decoded.local_bytes,
        dynamic_shared_start: decoded.shared_bytes.next_multiple_of(SHARED_ALIGN),
        program: decoded.program,
    })
}
