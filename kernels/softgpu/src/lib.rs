//! Software CUDA device for tests: it parses the PTX that nvcc emits and executes it on the CPU, strictly.
//!
//! A [`Module`] is parsed once; [`launch`] runs one of its kernels over a grid. Device addresses are host addresses,
//! known to an [`AllocationTable`]: every access is checked against it. What a GPU would answer with silence or
//! garbage (a race in shared memory, a shuffle with missing lanes, data read before `cp.async.wait_group`) ends the
//! launch with a [`Fault`] that names kernel, PTX line, block and thread.
//!
//! What it does not model: time, occupancy, memory ordering between blocks, the last bits of approximate
//! instructions and of tensor cores ([`Settings::perturb`] moves both within their documented error instead).

mod allocation;
mod counters;
mod decode;
mod exec;
mod fault;
mod ir;
mod launch;
mod module;
mod ptx;
mod settings;

pub use allocation::{AccessError, AllocationError, AllocationTable, View};
pub use counters::Counters;
pub use fault::{Fault, FaultKind};
pub use launch::{LaunchConfig, launch};
pub use module::{Global, Kernel, LoadError, Module, Param};
pub use settings::{Checks, Settings, SettingsError};
