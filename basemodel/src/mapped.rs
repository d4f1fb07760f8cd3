//! Memory-mapped files: the one module of this crate with unsafe code.
#![allow(unsafe_code)]

use crate::{Error, files};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A file whose bytes are read through the page cache, without a copy.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps the whole file, read-only.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| Error::NotFound(format!("{}: {e}", path.display())))?;
        let regular = file.metadata().is_ok_and(|m| m.is_file());
        if !regular {
            return Err(Error::NotFound(format!("{}: not a regular file", path.display())));
        }
        // SAFETY: the map is read-only and private to this process, and nothing in Ballast writes to a model's files.
        // Another process that shortens the file while a run uses it would end this process with SIGBUS; that is
        // documented for users (a base model must not change under a run) and cannot be ruled out by any mapping.
        let map = unsafe { memmap2::Mmap::map(&file) }
            .map_err(|e| Error::malformed(path, format!("cannot be mapped: {e}")))?;
        files::refuse_pointer(path, &map)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}
