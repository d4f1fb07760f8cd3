//! The manifest that makes a directory a checkpoint.

use super::store::{Store, StoreError};
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

impl Manifest {
    /// The version that this code writes and reads.
    pub const FORMAT: u32 = 1;

    /// Reads the manifest of `directory`, and no other file.
    ///
    /// # Errors
    /// In words, why it cannot be read.
    pub fn read(store: &dyn Store, directory: &str) -> Result<Self, String> {
        let bytes = store.get(&format!("{directory}/{MANIFEST}")).map_err(|error| error.to_string())?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|e| format!("{directory}/{MANIFEST}: {e}"))?;
        if manifest.format != Self::FORMAT {
            return Err(format!("{directory}/{MANIFEST} has format {}, known is {}", manifest.format, Self::FORMAT));
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
    /// In words, what does not verify.
    pub fn verify(store: &dyn Store, directory: &str) -> Result<(Self, Vec<(String, Bytes)>), String> {
        let text = |error: StoreError| error.to_string();
        let manifest = Self::read(store, directory)?;
        let mut files = Vec::with_capacity(manifest.files.len());
        for entry in &manifest.files {
            let name = format!("{directory}/{}", entry.name);
            let bytes = store.get(&name).map_err(text)?;
            if bytes.len() as u64 != entry.size {
                return Err(format!("{name} has {} bytes, its manifest says {}", bytes.len(), entry.size));
            }
            if sha256_hex(&bytes) != entry.sha256 {
                return Err(format!("{name} does not have the sha256 that its manifest says"));
            }
            files.push((entry.name.clone(), bytes));
        }
        Ok((manifest, files))
    }
}
