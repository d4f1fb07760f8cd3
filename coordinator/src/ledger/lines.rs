//! A ledger's lines: how a record is sealed, and how a file of them is read back.

use super::{LedgerError, Record};
use crate::{
    disk::{Disk, RealDisk},
    json,
};
use std::{io, path::Path};

/// Every line ends in `,"crc32":"xxxxxxxx"}`: still one JSON object.
const SEAL: &str = ",\"crc32\":\"";
const SEAL_BYTES: usize = SEAL.len() + 8 + 2;

pub(super) fn encode(record: &Record) -> String {
    let json = json::line(record);
    let body = json.strip_suffix('}').unwrap_or(&json);
    format!("{body}{SEAL}{:08x}\"}}\n", crc32fast::hash(body.as_bytes()))
}

fn decode(line: &[u8]) -> Result<Record, String> {
    let at = line.len().checked_sub(SEAL_BYTES).ok_or("too short")?;
    let (body, seal) = line.split_at(at);
    if seal != format!("{SEAL}{:08x}\"}}", crc32fast::hash(body)).as_bytes() {
        return Err("its checksum does not match".into());
    }
    serde_json::from_slice(&[body, b"}"].concat()).map_err(|e| e.to_string())
}

/// What follows the last record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Whole,
    /// A line without an end: it is being written, or was when its writer died. Its step had not been committed.
    Unfinished,
    /// A line with an end, whose checksum does not match.
    Damaged,
}

/// Reads a ledger: its records, the bytes they take, and what follows them. A missing file is empty.
///
/// # Errors
/// [`LedgerError::Corrupt`] when a line other than the last does not verify.
pub fn read(path: &Path) -> Result<(Vec<Record>, u64, Tail), LedgerError> {
    read_on(&RealDisk, path)
}

pub(crate) fn read_on(disk: &dyn Disk, path: &Path) -> Result<(Vec<Record>, u64, Tail), LedgerError> {
    let bytes = match disk.read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(LedgerError::Io { path: path.to_owned(), source }),
    };
    let mut records = Vec::new();
    let mut whole = 0;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let record = match line.strip_suffix(b"\n") {
            Some(line) => decode(line),
            None => Err("it has no end".into()),
        };
        match record {
            Ok(record) => records.push(record),
            Err(_) if whole + line.len() == bytes.len() => {
                let tail = if line.ends_with(b"\n") { Tail::Damaged } else { Tail::Unfinished };
                return Ok((records, whole as u64, tail));
            }
            Err(problem) => {
                return Err(LedgerError::Corrupt { path: path.to_owned(), line: records.len() + 1, problem });
            }
        }
        whole += line.len();
    }
    Ok((records, whole as u64, Tail::Whole))
}
