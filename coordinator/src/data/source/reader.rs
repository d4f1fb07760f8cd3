//! Bytes of a file to JSON values, one at a time.

use super::parquet;
use crate::data::error::{DataError, Origin, Place};
use flate2::bufread::MultiGzDecoder;
use serde::Deserializer as _;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

/// Longest line of a JSONL file, in bytes. A row is one training sample, so a longer one is another kind of file.
const LONGEST_LINE: u64 = 64 << 20;
const BUFFER: usize = 1 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// A row before its fields are looked at.
pub(super) struct RawRow {
    pub(super) origin: Origin,
    /// The value, or why the row is no JSON.
    pub(super) value: Result<Value, String>,
}

/// Takes a row; `false` wants no more.
pub(super) type Sink<'a> = dyn FnMut(RawRow) -> Result<bool, DataError> + 'a;

/// Hands every row of a file to `sink`: the rows of Parquet, the elements of a JSON array, or else the lines of JSONL.
///
/// Parquet, gzip and Zstandard are known by their first bytes, arrays by their first character, whatever the file is called.
pub(super) fn for_each(path: &Path, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let fail = |error: io::Error| DataError::unreadable(path, error);
    let (mut reader, compressed) = open(path).map_err(fail)?;
    if reader.fill_buf().map_err(fail)?.starts_with(parquet::MAGIC) {
        if compressed {
            let reason = "a Parquet file is compressed within: unpack it before it is read";
            return Err(DataError::unreadable(path, reason));
        }
        return parquet::for_each(path, sink);
    }
    if reader.fill_buf().map_err(fail)?.starts_with(BYTE_ORDER_MARK) {
        reader.consume(BYTE_ORDER_MARK.len());
    }
    // Blank lines before the first row count, for line numbers.
    let mut line = 1;
    loop {
        match reader.fill_buf().map_err(fail)?.first() {
            Some(b'[') => return elements(path, reader, sink),
            Some(&byte) if byte.is_ascii_whitespace() => {
                line += u64::from(byte == b'\n');
                reader.consume(1);
            }
            _ => return lines(path, reader, line, sink),
        }
    }
}

/// The bytes of a file, and whether it is compressed.
fn open(path: &Path) -> io::Result<(Box<dyn BufRead>, bool)> {
    let mut file = BufReader::with_capacity(BUFFER, File::open(path)?);
    let start = file.fill_buf()?;
    Ok(if start.starts_with(&[0x1F, 0x8B]) {
        (Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(file))), true)
    } else if start.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        (Box::new(BufReader::with_capacity(BUFFER, zstd::Decoder::with_buffer(file)?)), true)
    } else {
        (Box::new(file), false)
    })
}

fn lines(path: &Path, mut reader: Box<dyn BufRead>, first: u64, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let file: Arc<Path> = path.into();
    let mut buffer = Vec::new();
    for line in first.. {
        buffer.clear();
        let read = reader
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut buffer)
            .map_err(|e| DataError::unreadable(path, format_args!("line {line}: {e}")))?;
        if read == 0 {
            break;
        }
        if read as u64 == LONGEST_LINE && buffer.last() != Some(&b'\n') {
            let limit = LONGEST_LINE >> 20;
            return Err(DataError::unreadable(path, format_args!("line {line} is longer than {limit} MiB")));
        }
        if buffer.trim_ascii().is_empty() {
            continue;
        }
        let origin = Origin { file: Arc::clone(&file), place: Place::Line(line) };
        if !sink(RawRow { origin, value: parse(&buffer) })? {
            break;
        }
    }
    Ok(())
}

fn parse(line: &[u8]) -> Result<Value, String> {
    let text = str::from_utf8(line).map_err(|e| format!("not valid UTF-8 at byte {} of the line", e.valid_up_to()))?;
    // Without its end, so that a row that is cut off ends where it was cut.
    serde_json::from_str(text.trim_ascii_end()).map_err(|e| {
        if e.is_eof() && text.trim() == "{" {
            return "one JSON object over several lines; write an array, or one object a line".into();
        }
        if e.is_eof() {
            return format!("not valid JSON: cut off at column {}", e.column());
        }
        // serde_json counts lines within what it was given: here always one.
        let message = e.to_string();
        let what = message.split(" at line ").next().unwrap_or(&message);
        format!("not valid JSON: {what} at column {}", e.column())
    })
}

fn elements(path: &Path, reader: Box<dyn BufRead>, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let mut elements = Elements { file: path.into(), index: 0, done: false, failure: None, sink };
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let outcome = deserializer.deserialize_seq(&mut elements).and_then(|()| deserializer.end());
    match (elements.failure, outcome) {
        (Some(failure), _) => Err(failure),
        (None, Err(error)) if !elements.done => {
            let what = format!("element {} of the array: {error}", elements.index);
            Err(DataError::unreadable(path, what))
        }
        _ => Ok(()),
    }
}

/// Visits an array, handing each element on as soon as it is parsed.
struct Elements<'a, 'b> {
    file: Arc<Path>,
    index: u64,
    /// No more rows are wanted.
    done: bool,
    failure: Option<DataError>,
    sink: &'a mut Sink<'b>,
}

impl<'de> Visitor<'de> for &mut Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(value) = seq.next_element::<Value>()? {
            let origin = Origin { file: Arc::clone(&self.file), place: Place::Element(self.index) };
            self.index += 1;
            match (self.sink)(RawRow { origin, value: Ok(value) }) {
                Ok(true) => {}
                Ok(false) => {
                    self.done = true;
                    return Err(A::Error::custom("enough"));
                }
                Err(failure) => {
                    self.failure = Some(failure);
                    return Err(A::Error::custom("refused"));
                }
            }
        }
        Ok(())
    }
}
