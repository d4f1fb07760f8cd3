//! The run file: layered (file < environment < `--set`), resolved, and validated before anything starts.
//!
//! Read top to bottom: [`layers`] finds settings and remembers where each came from, [`keys`] says what every key
//! may hold, [`load`] merges and types them, [`rules`] refuses what contradicts itself, [`show`] prints the result.
//! [`schema`] tells editors what [`keys`] and [`meanings`] know.

mod error;
mod keys;
mod kind;
mod layers;
mod load;
mod meanings;
mod rules;
mod schema;
mod sections;
mod show;
#[cfg(test)]
mod tests;
mod words;

pub use error::{ConfigError, Contradiction, Side};
pub use keys::{KEYS, Key};
pub use kind::Kind;
pub use layers::{Origin, environment};
pub use load::{Resolved, load};
pub use meanings::meanings;
pub use schema::schema;
pub use sections::*;
pub use words::*;
