//! `libnccl.so` of the software device: collectives between processes on one machine, over loopback TCP.
//!
//! The process that makes the unique id opens a hub; every rank connects to it with the secret that the id carries. A
//! collective is queued on its stream; when the stream gets there, each rank sends its operand to the hub, which
//! compares what the ranks ask for, combines, and answers all. A mismatch that would hang or corrupt a real job is
//! reported to every rank as `ncclInvalidUsage`, the loss of a rank as `ncclRemoteError`. After an abort or an error
//! the receive buffer holds garbage, never something that could pass for a result.
//!
//! One process is one rank. `SOFTGPU_NCCL_FAULT` makes it a bad one; see `fault`.

#![allow(non_snake_case, reason = "exported names are those of NCCL")]

mod abi;
mod collective;
mod communicator;
mod fault;
mod hub;
mod init;
mod reduce;
mod unsupported;
mod wire;

#[path = "../../shared/driver.rs"]
mod driver;
