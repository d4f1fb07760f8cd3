//! Rows of a Parquet file as the JSON objects that they would be in JSONL, one at a time.
//!
//! The `parquet` crate decodes; what its input makes it allocate is bounded first ([`limits`]), and a panic of its is an error of
//! the file ([`contain`]). A damaged file cannot be read on: where its columns are no longer known to be in step, the next row
//! would be made of pieces of others.

mod contain;
mod limits;
#[cfg(test)]
mod tests;
mod thrift;
mod value;

use super::reader::{RawRow, Sink};
use crate::data::error::{DataError, Origin, Place};
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::reader::{ReaderIter, TreeBuilder};
use contain::contain;
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

pub use contain::contains_panic;

/// What a Parquet file begins with (and ends).
pub(super) const MAGIC: &[u8] = b"PAR1";

/// Rows that are decoded at once: values are slices of their pages, which stay in memory as long.
const BATCH: usize = 1;

/// Hands every row of a file to `sink`.
pub(super) fn for_each(path: &Path, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let fail = |reason: String| DataError::unreadable(path, reason);
    let file = File::open(path).map_err(|error| DataError::unreadable(path, error))?;
    let own = file.try_clone().map_err(|error| DataError::unreadable(path, error))?;
    let reader = contain(|| open(own)).map_err(fail)?;
    let name: Arc<Path> = path.into();
    let mut index = 0;
    for group in 0..reader.num_row_groups() {
        let mut rows = contain(|| rows(&reader, &file, group)).map_err(|e| fail(format!("row group {group}: {e}")))?;
        while let Some(row) = contain(|| next(&mut rows)).map_err(|e| fail(format!("row {index}: {e}")))? {
            let origin = Origin { file: Arc::clone(&name), place: Place::Row(index) };
            index += 1;
            if !sink(RawRow { origin, value: Ok(row) })? {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn open(file: File) -> Result<SerializedFileReader<File>, String> {
    limits::footer(&file)?;
    SerializedFileReader::new(file).map_err(|error| error.to_string())
}

fn rows(reader: &SerializedFileReader<File>, file: &File, group: usize) -> Result<ReaderIter, String> {
    let group = reader.get_row_group(group).map_err(|error| error.to_string())?;
    limits::row_group(file, group.metadata())?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    TreeBuilder::new().with_batch_size(BATCH).as_iter(schema, &*group).map_err(|error| error.to_string())
}

fn next(rows: &mut ReaderIter) -> Result<Option<Value>, String> {
    let row = rows.next().transpose().map_err(|error| error.to_string())?;
    Ok(row.as_ref().map(value::object))
}
