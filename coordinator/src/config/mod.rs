//! The run file: layered, resolved, and validated before anything starts.

mod sections;

pub use sections::*;
