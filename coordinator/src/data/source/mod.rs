//! Reading rows: JSON arrays and JSONL, plain or compressed, and Parquet, in the shapes that datasets come in.
//!
//! Files are streamed; only one row is held at a time, and of Parquet the pages that it is in.

mod parquet;
mod reader;
mod shape;

use super::error::DataError;
use super::row::{Message, Row, Shape};
use crate::config::{self, OnBadRow, RowFormat};
use reader::RawRow;
use std::path::{Path, PathBuf};

pub use parquet::contains_panic;
pub use shape::detect;

/// What of the run file says how rows are read.
#[derive(Clone, Copy, Debug)]
pub struct SourceSettings<'a> {
    /// Shape of a row.
    pub format: RowFormat,
    /// With `fields`: the prompt's field.
    pub prompt_field: Option<&'a str>,
    /// With `fields`: the answer's field.
    pub answer_field: Option<&'a str>,
    /// What to do with a malformed row.
    pub on_bad_row: OnBadRow,
    /// Use only the first rows, at most this many.
    pub limit: Option<usize>,
}

impl<'a> SourceSettings<'a> {
    /// For training rows.
    #[must_use]
    pub fn of(data: &'a config::Data) -> Self {
        Self {
            format: data.format,
            prompt_field: data.prompt_field.as_deref(),
            answer_field: data.answer_field.as_deref(),
            on_bad_row: data.on_bad_row,
            limit: data.limit,
        }
    }
}

/// What a file's rows are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Conversations with an answer to learn or to score.
    Answers,
    /// Prompts to be answered: an answer in the row, if there is one, is left out.
    Prompts,
}

/// Malformed rows that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadRows {
    /// How many.
    pub count: u64,
    /// What was wrong with the first.
    pub first: Option<String>,
}

impl BadRows {
    /// Applies the policy to a row's error: passes it on, or counts it.
    ///
    /// # Errors
    /// The error itself, when the policy is to fail.
    pub fn meet(&mut self, error: DataError, policy: OnBadRow) -> Result<(), DataError> {
        match policy {
            OnBadRow::Fail => Err(error),
            OnBadRow::Skip => {
                self.count += 1;
                self.first.get_or_insert_with(|| error.to_string());
                Ok(())
            }
        }
    }
}

/// Hands every row of the files, in order, to `sink`.
///
/// # Errors
/// [`DataError::Unreadable`] for a file, [`DataError::BadRow`] for a row under `on_bad_row = "fail"`, and what `sink`
/// returns.
pub fn read(
    files: &[PathBuf],
    settings: SourceSettings<'_>,
    purpose: Purpose,
    bad: &mut BadRows,
    sink: &mut dyn FnMut(Row) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut left = settings.limit.unwrap_or(usize::MAX);
    for file in files {
        if left == 0 {
            break;
        }
        read_file(file, settings, purpose, bad, &mut left, sink)?;
    }
    Ok(())
}

fn read_file(
    file: &Path,
    settings: SourceSettings<'_>,
    purpose: Purpose,
    bad: &mut BadRows,
    left: &mut usize,
    sink: &mut dyn FnMut(Row) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut known: Option<Shape> = None;
    reader::for_each(file, &mut |raw| {
        *left -= 1;
        match to_row(raw, &mut known, settings, purpose) {
            Ok(row) => sink(row)?,
            Err(Refused::File(error)) => return Err(error),
            Err(Refused::Row(error)) => bad.meet(error, settings.on_bad_row)?,
        }
        Ok(*left > 0)
    })
}

/// Why a row was not read.
enum Refused {
    /// Something is wrong with this row.
    Row(DataError),
    /// No row of the file can be read.
    File(DataError),
}

fn to_row(
    raw: RawRow,
    known: &mut Option<Shape>,
    settings: SourceSettings<'_>,
    purpose: Purpose,
) -> Result<Row, Refused> {
    let RawRow { origin, value } = raw;
    let bad = |problem| Refused::Row(DataError::bad_row(&origin, problem));
    let object = match value.map_err(bad)? {
        serde_json::Value::Object(object) => object,
        other => return Err(bad(format!("the row is {}, not an object", shape::kind(&other)))),
    };
    let shape = match known {
        Some(shape) => shape.clone(),
        None => {
            let shape =
                detect(&object, settings, purpose).map_err(|p| Refused::File(DataError::bad_row(&origin, p)))?;
            known.insert(shape).clone()
        }
    };
    let messages: Vec<Message> = shape::messages(&object, &shape, purpose).map_err(bad)?;
    Ok(Row { origin, shape, messages })
}
