//! Where durable objects live: the small part of a file system that object stores have too.

use ballast_proto::{Coded, ErrorCode, Failure};
use bytes::Bytes;
use std::path::PathBuf;

/// A store of named objects. Names are `/`-separated paths of plain segments (see [`check_name`]).
///
/// Every call is atomic and durable when it returns: a reader sees an object whole or not at all, also after a crash.
/// The calls block, for as long as a disk or a network takes: they are made from blocking threads, never from tasks.
pub trait Store: Send + Sync + 'static {
    /// Where it is, for people: a directory or a URL.
    fn place(&self) -> String;

    /// Writes an object, replacing one of the same name.
    ///
    /// # Errors
    /// [`StoreError`] when the name is not allowed or the store fails; then the old object, if any, is intact.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Writes an object that must not exist yet.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when it does; of several callers at once exactly one succeeds.
    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Reads an object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    fn get(&self, name: &str) -> Result<Bytes, StoreError>;

    /// Names of all objects that begin with `prefix` and `/`, or of all objects when `prefix` is empty; ascending.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// Removes an object; one that does not exist is removed already.
    ///
    /// # Errors
    /// [`StoreError`] when the name is not allowed or the store fails.
    fn delete(&self, name: &str) -> Result<(), StoreError>;
}

/// Where an object or a directory of them lies, for people.
#[must_use]
pub fn locate(store: &dyn Store, name: &str) -> PathBuf {
    [store.place().as_str(), name].iter().collect()
}

/// What a store can fail with.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is not a plain relative path.
    #[error("{0:?} is not an allowed object name")]
    Name(String),
    /// The object exists already.
    #[error("{0} exists already")]
    Exists(String),
    /// There is no such object.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The disk failed, here and now or for good.
    #[error("cannot {action} {name}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which object.
        name: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The store could not be asked: of the object nothing is known.
    #[error("cannot {action} {name}: {source}")]
    Unavailable {
        /// What was tried.
        action: &'static str,
        /// On which object.
        name: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Coded for StoreError {
    fn code(&self) -> ErrorCode {
        ErrorCode::StorageFailed
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Accepts relative paths of segments of letters, digits, `-`, `_` and `.`, none starting with a dot: no way out of the
/// store and no clash with its temporary files.
///
/// # Errors
/// [`StoreError::Name`] for everything else.
pub(super) fn check_name(name: &str) -> Result<(), StoreError> {
    let plain = |segment: &str| {
        !segment.is_empty()
            && segment.len() <= 255
            && !segment.starts_with('.')
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if name.split('/').all(plain) { Ok(()) } else { Err(StoreError::Name(name.to_owned())) }
}
