//! Finding the newest checkpoint that verifies.

use super::{
    AdapterShapes,
    directories::complete,
    manifest::{Manifest, Unverified},
    save::{ADAPTER_MODEL, OPTIMIZER, STATE, StateRecord},
    store::Store,
    validate_adapter, validate_optimizer,
};
use ballast_proto::{ErrorCode, Failure};
use bytes::Bytes;

/// A checkpoint that verifies.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Where it lies in the store.
    pub directory: String,
    /// `state.json`.
    pub state: StateRecord,
    /// Bytes of `adapter_model.safetensors`.
    pub adapter: Bytes,
    /// Bytes of `optimizer.safetensors`.
    pub optimizer: Bytes,
}

/// The newest checkpoint that verifies and that `accept` (the ledger) knows, with a warning for every newer one that was
/// passed over. Directories without a manifest were never complete and are ignored.
///
/// # Errors
/// `CheckpointCorrupt` when there are checkpoints but none is good; `StorageFailed` when the store fails.
pub fn newest(
    store: &dyn Store,
    shapes: &AdapterShapes,
    accept: &dyn Fn(&StateRecord) -> Result<(), String>,
) -> Result<(Option<Checkpoint>, Vec<String>), Failure> {
    let mut warnings = Vec::new();
    for directory in complete(store)? {
        let loaded = load(store, &directory, shapes).and_then(|c| Ok(accept(&c.state).map(|()| c)?));
        match loaded {
            Ok(checkpoint) => return Ok((Some(checkpoint), warnings)),
            // An older one in its place would be a step back for no reason, and the end of this one.
            Err(Unverified::Unavailable(error)) => return Err(error.into()),
            Err(Unverified::Damaged(why)) => warnings.push(format!("passed over {directory}: {why}")),
        }
    }
    if warnings.is_empty() {
        return Ok((None, warnings));
    }
    let message = format!("no checkpoint verifies; {}", warnings.join("; "));
    Err(Failure::new(ErrorCode::CheckpointCorrupt, message))
}

/// The checkpoint in `directory`, verified.
///
/// # Errors
/// [`Unverified`]
pub fn load(store: &dyn Store, directory: &str, shapes: &AdapterShapes) -> Result<Checkpoint, Unverified> {
    let (manifest, files) = Manifest::verify(store, directory)?;
    let file = |name: &str| {
        let found = files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.clone());
        found.ok_or_else(|| format!("its manifest has no {name}"))
    };
    let (adapter, optimizer) = (file(ADAPTER_MODEL)?, file(OPTIMIZER)?);
    let state: StateRecord = serde_json::from_slice(&file(STATE)?).map_err(|e| format!("{STATE}: {e}"))?;
    if state.step != manifest.step {
        return Err(format!("{STATE} is of step {}, the manifest of step {}", state.step, manifest.step).into());
    }
    validate_adapter(ADAPTER_MODEL, &adapter, shapes).map_err(|e| e.message)?;
    validate_optimizer(OPTIMIZER, &optimizer, shapes, state.step).map_err(|e| e.message)?;
    Ok(Checkpoint { directory: directory.to_owned(), state, adapter, optimizer })
}
