//! The final PEFT directory.

use super::{
    manifest::sha256_hex,
    peft::{ADAPTER_CONFIG, AdapterConfig},
    save::ADAPTER_MODEL,
    store::{Store, StoreError},
};

const ADAPTER: &str = "adapter";

/// Where the trained adapter lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalAdapter {
    /// Its directory within the run directory.
    pub directory: &'static str,
    /// SHA-256 (hex) of `adapter_model.safetensors`.
    pub sha256: String,
}

/// Writes `adapter/`. The files are a pure function of tensors and configuration.
///
/// # Errors
/// When the store fails.
pub fn publish_adapter(store: &dyn Store, adapter: &[u8], config: &AdapterConfig) -> Result<FinalAdapter, StoreError> {
    store.put(&format!("{ADAPTER}/{ADAPTER_CONFIG}"), &config.to_json())?;
    store.put(&format!("{ADAPTER}/{ADAPTER_MODEL}"), adapter)?;
    Ok(FinalAdapter { directory: ADAPTER, sha256: sha256_hex(adapter) })
}
