//! Who may talk to whom: tokens, certificates and keys from files, and the client's end of a secured connection.
//!
//! Everything is checked when it is loaded, so that a run does not fail an hour later for a file that nobody can read.

mod connection;
mod encrypted;
mod file;
mod identity;
mod refusal;
#[cfg(feature = "simulation")]
pub mod simulated;
mod token;

pub use connection::{Bearer, Channel, ClientSecurity, Connector};
pub use file::SecurityFile;
pub use identity::{Authorities, Identity, provider};
pub use refusal::tls_refusal;
pub use token::Token;
