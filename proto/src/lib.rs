//! The wire between coordinator and workers, and the one error table.
//!
//! [`v1`] holds the types generated from `proto/ballast/v1/*.proto`; [`ErrorCode`] names every error that a user
//! can meet, with its stable code, gRPC status, exit code and whether a retry may help.
#![forbid(unsafe_code)]

mod blocking;
mod convert;
mod error;
pub mod fault;
mod secret;
pub mod security;

pub use blocking::Blocking;
pub use error::{Coded, ErrorCode, Failure, exit};
pub use secret::CommunicatorSecret;

// Every method of every service, as a request names it: `/ballast.v1.Membership/Join`.
include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// Version 1 of the protocol, generated from the `.proto` files.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("ballast.v1");
}
