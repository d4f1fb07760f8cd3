//! The manifest that makes a directory a checkpoint.

use super::store::{Store, StoreError};
use ballast_proto::{ErrorCode, Failure};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Name of the manifest within its checkpoint.
pub const MANIFEST: &str = "manifest.json";

/// What a checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this layout.
    pub format: u32,
    /// Steps applied.
    pub step: u64,
    /// The generation that wrote it, as `epoch.number`.
    pub generation: String,
    /// Every other file, ascending by name.
    pub files: Vec<FileEntry>,
}

/// A file and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name within the checkpoint.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256, in hex.
    pub sha256: String,
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl FileEntry {
    /// The entry of these bytes.
    #[must_use]
    pub fn of(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.to_owned(), size: bytes.len() as u64, sha256: sha256_hex(bytes) }
    }
}

/// Why a checkpoint was not verified.
#[derive(Debug, thiserror::Error)]
pub enum Unverified {
    /// It is damaged or incomplete, and this is what does not verify.
    #[error("{0}")]
    Damaged(String),
    /// The store could not be asked. The checkpoint may be as good as ever.
    #[error(transparent)]
    Unavailable(StoreError),
}

impl From<String> for Unverified {
    fn from(what: String) -> Self {
        Self::Damaged(what)
    }
}

impl From<StoreError> for Unverified {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { .. } => Self::Unavailable(error),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

impl From<Unverified> for Failure {
    fn from(why: Unverified) -> Self {
        match why {
            Unverified::Damaged(what) => Self::new(ErrorCode::CheckpointCorrupt, what),
            Unverified::Unavailable(error) => error.into(),
        }
    }
}

impl Manifest {
    /// The version that this code writes and reads.
    pub const FORMAT: u32 = 1;

    /// Reads the manifest of `directory`, and no other file.
    ///
    /// # Errors
    /// [`Unverified`]
    pub fn read(store: &dyn Store, directory: &str) -> Result<Self, Unverified> {
        let bytes = store.get(&format!("{directory}/{MANIFEST}"))?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|e| format!("{directory}/{MANIFEST}: {e}"))?;
        if manifest.format != Self::FORMAT {
            let found = manifest.format;
            return Err(format!("{directory}/{MANIFEST} has format {found}, known is {}", Self::FORMAT).into());
        }
        Ok(manifest)
    }

    /// Epoch of the coordinator that wrote it.
    pub(super) fn epoch(&self) -> Option<u64> {
        self.generation.split_once('.')?.0.parse().ok()
    }

    /// Reads the manifest of `directory` and every file it names, verifying sizes and hashes.
    ///
    /// # Errors
    /// [`Unverified`]
    pub fn verify(store: &dyn Store, directory: &str) -> Result<(Self, Vec<(String, Bytes)>), Unverified> {
        let manifest = Self::read(store, directory)?;
        let mut files = Vec::with_capacity(manifest.files.len());
        for entry in &manifest.files {
            let name = format!("{directory}/{}", entry.name);
            let bytes = store.get(&name)?;
            if bytes.len() as u64 != entry.size {
                return Err(format!("{name} has {} bytes, its manifest says {}", bytes.len(), entry.size).into());
            }
            if sha256_hex(&bytes) != entry.sha256 {
                return Err(format!("{name} does not have the sha256 that its manifest says").into());
            }
            files.push((entry.name.clone(), bytes));
        }
        Ok((manifest, files))
    }
}
