//! `libcublasLt.so` of the software device: the part of cuBLASLt that plain products need, on the CPU.
//!
//! `D = alpha op(A) op(B) + beta C [+ bias]`, column-major, in batches, of f32, bf16 and f16, always computed in f32.
//! Each element of `op(A) op(B)` is a sum over stretches of 512 of k, in order, each a chain of fused multiply-adds,
//! whatever the tiles and threads. So results have the same bits on every machine, but not those of a GPU, whose order
//! differs by algorithm; its rounding errors over a long k are of this size if it splits k, and larger if it does not.
//!
//! A product is queued on its stream and does its work when the stream gets there; operands that do not lie in device
//! memory then raise a fault, as on a GPU. What this library lacks answers `CUBLAS_STATUS_NOT_SUPPORTED`; no attribute
//! is accepted and ignored. TF32 is among what it lacks, on purpose: f32 products of this project must be f32.

#![allow(non_snake_case, reason = "exported names are those of cuBLASLt")]

mod abi;
mod descriptors;
mod elements;
mod heuristic;
mod matmul;
mod micro_kernel;
mod product;

#[path = "../../shared/driver.rs"]
mod driver;
