//! The data plane, a pipeline read top to bottom: [`source`] -> [`lookahead`] -> [`template`] and [`segment`] ->
//! [`tokenize`] -> [`plan`]. [`prepare`] runs all but the plan and keeps the result in a cache.

mod cache;
mod codec;
mod collect;
mod error;
pub mod lookahead;
mod pipeline;
pub mod plan;
mod prepare;
mod prepared;
pub mod row;
pub mod segment;
pub mod source;
pub mod template;
pub mod tokenize;

pub use error::{DataError, Origin, Place};
pub use prepare::{ModelText, PrepareProgress, prepare, prepare_with};
pub use prepared::{MANIFEST_FILE, MANIFEST_KIND, Manifest, PreparedSet, Probe, ROWS_FILE, Span, Stats};
pub use tokenize::Sample;
