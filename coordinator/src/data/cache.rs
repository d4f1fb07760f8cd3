//! The cache of prepared sets: one file for each, named by the hash of all that shaped it.

use super::codec::{self, Stored};
use super::error::DataError;
use crate::config;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where prepared sets are kept.
///
/// # Errors
/// [`DataError::Cache`] when the run file names no directory and there is no home directory.
pub(super) fn directory(data: &config::Data) -> Result<PathBuf, DataError> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    data.cache_dir
        .clone()
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("ballast/prepared")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/ballast/prepared")))
        .ok_or_else(|| DataError::Cache {
            path: "prepared sets".into(),
            reason: "no place to keep them: neither XDG_CACHE_HOME nor HOME is set; set data.cache_dir".into(),
        })
}

/// Reads a set; `None` when there is none, the reason when it is damaged.
pub(super) fn load(path: &Path) -> Result<Option<Stored>, String> {
    match fs::read(path) {
        Ok(bytes) => codec::decode(&bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Writes a set.
pub(super) fn store(path: &Path, stored: &Stored) -> Result<(), DataError> {
    let bytes = codec::encode(stored).map_err(|e| DataError::cache(path, &e.into()))?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|e| DataError::cache(directory, &e))?;
    }
    write_whole(path, &bytes)
}

/// The prepared rows of a set, as JSONL.
pub(super) fn read_rows(path: &Path) -> Result<Vec<u8>, DataError> {
    let missing = || DataError::Cache {
        path: path.to_owned(),
        reason: "the prepared set was deleted from the cache; prepare it again".into(),
    };
    let stored = load(path)
        .map_err(|reason| DataError::Cache { path: path.to_owned(), reason: format!("it is damaged: {reason}") })?
        .ok_or_else(missing)?;
    zstd::decode_all(stored.rows.as_slice()).map_err(|e| DataError::cache(path, &e))
}

/// Writes a file whole or not at all: temporary file, fsync, rename, fsync of the directory.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let failed = |error: io::Error| DataError::cache(path, &error);
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = directory.join(name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| {
        // Nothing half-written stays; the first error is the one to report.
        let _ = fs::remove_file(&temporary);
        failed(error)
    })
}
