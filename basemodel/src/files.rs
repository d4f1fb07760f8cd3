//! Small text files of a model directory, read with a limit on their size.

use crate::Error;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Largest `config.json` and the like: real ones hold a few kilobytes, a `tokenizer_config.json` a few hundred.
pub(crate) const CONFIG_LIMIT: u64 = 16 << 20;
/// Largest index of shards.
pub(crate) const INDEX_LIMIT: u64 = 64 << 20;
/// Largest `tokenizer.json`: vocabularies of 256 thousand tokens take some 35 MB.
pub(crate) const TOKENIZER_LIMIT: u64 = 256 << 20;

/// What Git leaves in place of a large file until Git LFS has fetched it begins so.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Refuses bytes that only stand for the file.
pub(crate) fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if bytes.starts_with(LFS_POINTER) {
        return Err(Error::malformed(path, "is a Git LFS pointer, not the file itself: run `git lfs pull` there"));
    }
    Ok(())
}

/// The file's bytes, or `None` where there is no such file.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::NotFound(format!("{}: {e}", path.display()))),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::NotFound(format!("{}: {e}", path.display())))?;
    if bytes.len() as u64 > limit {
        return Err(Error::malformed(path, format!("is larger than {} MiB", limit >> 20)));
    }
    refuse_pointer(path, &bytes)?;
    Ok(Some(bytes))
}

/// The file's text, or `None` where there is no such file.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<Option<String>, Error> {
    let Some(bytes) = read(path, limit)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| Error::malformed(path, "is not UTF-8"))
}

/// The JSON object that the file holds, or `None` where there is no such file.
pub(crate) fn read_object(path: &Path, limit: u64) -> Result<Option<Map<String, Value>>, Error> {
    let Some(bytes) = read(path, limit)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(Error::malformed(path, "is not a JSON object")),
        Err(e) => Err(Error::malformed(path, format!("is not JSON: {e}"))),
    }
}
