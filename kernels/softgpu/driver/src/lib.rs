//! `libcuda.so` of the software device: the CUDA driver API, answered by the interpreter of `ballast-softgpu`.
//!
//! Signatures and rules come from NVIDIA's documentation of the driver API; they are written down here a second time,
//! not taken from the bindings of the program under test, so that a mistake there is not made here too.
//! Functions that this device lacks are exported all the same and answer `CUDA_ERROR_NOT_SUPPORTED`.
//!
//! Everything a stream does is a [`work::Work`] in the queue of a [`queue::Stream`]; [`device::Device`] holds all state.
//! `../README.md` lists the environment variables and where this device is simpler than a GPU.

#![allow(non_snake_case, reason = "exported names are those of the CUDA driver API")]

mod abi;
mod call;
mod context;
mod counters;
mod device;
mod event;
mod kernel;
mod memory;
mod module;
mod occupancy;
mod properties;
mod queue;
mod stand_ins;
mod stream;
mod symbols;
mod transfer;
mod unsupported;
mod work;
