//! Writing checkpoints, finding the newest that verifies, and letting go of old ones.

use super::{
    AdapterShapes, StoreError,
    manifest::{FileEntry, MANIFEST, Manifest},
    peft::{ADAPTER_CONFIG, AdapterConfig},
    store::Store,
    validate_adapter, validate_optimizer,
};
use crate::json;
use ballast_proto::{ErrorCode, Failure, fault, v1::Generation};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{cmp::Reverse, collections::BTreeMap};

/// Adapter weights, with PEFT's names.
pub const ADAPTER_MODEL: &str = "adapter_model.safetensors";
/// Moments and fixed-point exponents.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// What the tensors do not say.
pub const STATE: &str = "state.json";

const CHECKPOINTS: &str = "checkpoints";
const LATEST: &str = "latest";

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateRecord {
    /// Steps applied.
    pub step: u64,
    /// The generation that trained the last of them, as `epoch.number`.
    pub generation: String,
    /// SHA-256 (hex) of the training state, as in the ledger.
    pub state_sha256: String,
}

/// A state to be made durable. Its tensors have been validated.
#[derive(Clone, Copy, Debug)]
pub struct SaveRequest<'a> {
    /// Steps applied.
    pub step: u64,
    /// The generation that uploaded it.
    pub generation: Generation,
    /// SHA-256 of the training state.
    pub state_sha256: &'a [u8],
    /// Bytes of `adapter_model.safetensors`.
    pub adapter: &'a [u8],
    /// Bytes of `optimizer.safetensors`.
    pub optimizer: &'a [u8],
    /// For `adapter_config.json`.
    pub config: &'a AdapterConfig,
}

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

fn directory(step: u64, generation: u64) -> String {
    format!("{CHECKPOINTS}/step-{step:08}.g{generation}")
}

/// Step and generation number of a checkpoint's directory name.
fn parse_directory(name: &str) -> Option<Age> {
    let (step, generation) = name.strip_prefix("step-")?.split_once(".g")?;
    Some((step.parse().ok()?, generation.parse().ok()?))
}

/// Writes a checkpoint: its files, then the manifest, then `latest`. Saving the same state again changes nothing.
///
/// # Errors
/// When the store fails, or holds another state under the same step and generation.
pub fn save(store: &dyn Store, request: &SaveRequest<'_>) -> Result<String, Failure> {
    let directory = directory(request.step, request.generation.number);
    let state = StateRecord {
        step: request.step,
        generation: request.generation.to_string(),
        state_sha256: hex::encode(request.state_sha256),
    };
    let config = request.config.to_json();
    let state = json::file(&state);
    let mut files =
        [(ADAPTER_MODEL, request.adapter), (ADAPTER_CONFIG, &config), (OPTIMIZER, request.optimizer), (STATE, &state)];
    files.sort_unstable_by_key(|(name, _)| *name);
    let manifest = Manifest {
        format: Manifest::FORMAT,
        step: request.step,
        generation: request.generation.to_string(),
        files: files.iter().map(|(name, bytes)| FileEntry::of(name, bytes)).collect(),
    };
    let manifest = json::file(&manifest);
    let manifest_name = format!("{directory}/{MANIFEST}");
    match store.get(&manifest_name) {
        Ok(existing) if existing == manifest => return Ok(directory),
        Ok(_) => {
            let message = format!("{directory} exists already and holds another state");
            return Err(Failure::new(ErrorCode::StorageFailed, message));
        }
        Err(StoreError::NotFound(_)) => {}
        Err(e) => return Err(e.into()),
    }
    for (name, bytes) in files {
        store.put(&format!("{directory}/{name}"), bytes)?;
        fault::point("checkpoint", request.step);
    }
    store.create(&manifest_name, &manifest)?;
    fault::point("manifest", request.step);
    store.put(LATEST, format!("{directory}\n").as_bytes())?;
    Ok(directory)
}

/// Step and generation number of a checkpoint: its age.
type Age = (u64, u64);

/// Files of every checkpoint directory, newest first.
fn directories(store: &dyn Store) -> Result<Vec<(Age, Vec<String>)>, StoreError> {
    let mut found: BTreeMap<Reverse<Age>, Vec<String>> = BTreeMap::new();
    for name in store.list(CHECKPOINTS)? {
        let key = name.split('/').nth(1).and_then(parse_directory);
        if let Some(key) = key {
            found.entry(Reverse(key)).or_default().push(name);
        }
    }
    Ok(found.into_iter().map(|(Reverse(key), files)| (key, files)).collect())
}

fn is_complete(files: &[String]) -> bool {
    files.iter().any(|name| name.rsplit('/').next() == Some(MANIFEST))
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
    for ((step, generation), _) in directories(store)?.into_iter().filter(|(_, files)| is_complete(files)) {
        let directory = directory(step, generation);
        match load(store, &directory, shapes).and_then(|c| accept(&c.state).map(|()| c)) {
            Ok(checkpoint) => return Ok((Some(checkpoint), warnings)),
            Err(why) => warnings.push(format!("passed over {directory}: {why}")),
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
/// In words, what does not verify.
pub fn load(store: &dyn Store, directory: &str, shapes: &AdapterShapes) -> Result<Checkpoint, String> {
    let (manifest, files) = Manifest::verify(store, directory)?;
    let file = |name: &str| {
        let found = files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.clone());
        found.ok_or_else(|| format!("its manifest has no {name}"))
    };
    let (adapter, optimizer) = (file(ADAPTER_MODEL)?, file(OPTIMIZER)?);
    let state: StateRecord = serde_json::from_slice(&file(STATE)?).map_err(|e| format!("{STATE}: {e}"))?;
    if state.step != manifest.step {
        return Err(format!("{STATE} is of step {}, the manifest of step {}", state.step, manifest.step));
    }
    validate_adapter(ADAPTER_MODEL, &adapter, shapes).map_err(|e| e.message)?;
    validate_optimizer(OPTIMIZER, &optimizer, shapes, state.step).map_err(|e| e.message)?;
    Ok(Checkpoint { directory: directory.to_owned(), state, adapter, optimizer })
}

/// Keeps the checkpoint just saved in `saved` and the `keep - 1` before it; removes the others, and what was never
/// completed. Newer ones than `saved` were passed over when the run went back, and the ledger has voided their steps.
///
/// # Errors
/// When the store fails; what is left is then still a set of complete checkpoints.
pub fn retain(store: &dyn Store, keep: u32, saved: &str) -> Result<(), StoreError> {
    let saved = saved.rsplit('/').next().and_then(parse_directory);
    let mut kept = 0;
    for (key, mut files) in directories(store)? {
        let superseded = Some(key) > saved;
        if !superseded && is_complete(&files) && kept < keep.max(1) {
            kept += 1;
        } else {
            // The manifest goes first: from then on it is no checkpoint.
            files.sort_unstable_by_key(|name| !name.ends_with(MANIFEST));
            files.iter().try_for_each(|name| store.delete(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{LocalStore, MemoryStore, tensors::tests as fixtures};
    use ballast_basemodel::Projection;

    fn shapes() -> AdapterShapes {
        AdapterShapes::new(&fixtures::architecture(), 2, &[Projection::Q])
    }

    fn config() -> AdapterConfig {
        AdapterConfig {
            model_source: "m".into(),
            revision: None,
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            rslora: false,
            target_modules: vec!["q_proj".into()],
        }
    }

    fn put(store: &dyn Store, step: u64, generation: u64) -> String {
        let adapter = fixtures::adapter(&shapes(), step as f32);
        let optimizer = fixtures::optimizer(&shapes(), 0.5, step);
        let request = SaveRequest {
            step,
            generation: Generation::new(1, generation),
            state_sha256: &[step as u8; 32],
            adapter: &adapter,
            optimizer: &optimizer,
            config: &config(),
        };
        save(store, &request).unwrap()
    }

    fn newest_step(store: &dyn Store) -> (Option<u64>, usize) {
        let (found, warnings) = newest(store, &shapes(), &|_| Ok(())).unwrap();
        (found.map(|c| c.state.step), warnings.len())
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        assert_eq!(put(&store, 120, 3), "checkpoints/step-00000120.g3");
        let files = store.list("checkpoints/step-00000120.g3").unwrap();
        let names: Vec<_> = files.iter().filter_map(|f| f.rsplit('/').next()).collect();
        let expected = [
            "adapter_config.json",
            "adapter_model.safetensors",
            "manifest.json",
            "optimizer.safetensors",
            "state.json",
        ];
        assert_eq!(names, expected);
        assert_eq!(store.get("latest").unwrap(), &b"checkpoints/step-00000120.g3\n"[..]);
    }

    #[test]
    fn saving_again_changes_nothing_and_another_state_is_refused() {
        let store = MemoryStore::default();
        put(&store, 5, 1);
        let before = store.list("").unwrap();
        put(&store, 5, 1);
        assert_eq!(store.list("").unwrap(), before);
        let other = SaveRequest {
            step: 5,
            generation: Generation::new(1, 1),
            state_sha256: &[9; 32],
            adapter: b"",
            optimizer: b"",
            config: &config(),
        };
        assert_eq!(save(&store, &other).unwrap_err().code, ErrorCode::StorageFailed);
    }

    #[test]
    fn the_newest_that_verifies_wins() {
        let store = MemoryStore::default();
        assert_eq!(newest_step(&store), (None, 0));
        put(&store, 10, 1);
        put(&store, 20, 1);
        put(&store, 20, 2);
        assert_eq!(newest_step(&store), (Some(20), 0));
        // A flipped byte, a truncated file, a missing file: each makes the loader fall back.
        let adapter = "checkpoints/step-00000020.g2/adapter_model.safetensors";
        let mut bytes = store.get(adapter).unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        store.put(adapter, &bytes).unwrap();
        assert_eq!(newest_step(&store), (Some(20), 1));
        store.put("checkpoints/step-00000020.g1/state.json", b"{").unwrap();
        assert_eq!(newest_step(&store), (Some(10), 2));
        store.delete("checkpoints/step-00000010.g1/optimizer.safetensors").unwrap();
        let failure = newest(&store, &shapes(), &|_| Ok(())).unwrap_err();
        assert_eq!(failure.code, ErrorCode::CheckpointCorrupt);
    }

    #[test]
    fn an_incomplete_directory_is_no_checkpoint() {
        let store = MemoryStore::default();
        put(&store, 10, 1);
        put(&store, 20, 1);
        store.delete("checkpoints/step-00000020.g1/manifest.json").unwrap();
        assert_eq!(newest_step(&store), (Some(10), 0));
    }

    #[test]
    fn a_checkpoint_the_ledger_does_not_know_is_passed_over() {
        let store = MemoryStore::default();
        put(&store, 10, 1);
        put(&store, 20, 1);
        let accept = |state: &StateRecord| if state.step > 10 { Err("not in the ledger".to_owned()) } else { Ok(()) };
        let (found, warnings) = newest(&store, &shapes(), &accept).unwrap();
        assert_eq!(found.unwrap().state.step, 10);
        assert_eq!(warnings, ["passed over checkpoints/step-00000020.g1: not in the ledger"]);
    }

    fn steps_left(store: &dyn Store) -> Vec<u64> {
        directories(store).unwrap().into_iter().map(|(key, _)| key.0).collect()
    }

    #[test]
    fn retention_keeps_the_newest() {
        let store = MemoryStore::default();
        let saved = [10, 20, 30, 40].map(|step| put(&store, step, 1));
        store.delete("checkpoints/step-00000020.g1/manifest.json").unwrap();
        retain(&store, 2, &saved[3]).unwrap();
        assert_eq!(steps_left(&store), [40, 30]);
        retain(&store, 0, &saved[3]).unwrap();
        assert_eq!(steps_left(&store), [40]);
    }

    #[test]
    fn a_newer_checkpoint_that_was_passed_over_does_not_displace_the_one_just_saved() {
        let store = MemoryStore::default();
        put(&store, 10, 1);
        store.put("checkpoints/step-00000010.g1/state.json", b"{").unwrap();
        put(&store, 4, 1);
        let saved = put(&store, 6, 2);
        retain(&store, 1, &saved).unwrap();
        assert_eq!(steps_left(&store), [6]);
    }
}
