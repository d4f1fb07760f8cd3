//! Writing checkpoints, and letting go of old ones.

use super::{
    directories::{directories, directory, is_complete, parse_directory},
    epoch::fence,
    manifest::{FileEntry, MANIFEST, Manifest},
    peft::{ADAPTER_CONFIG, AdapterConfig},
    store::{Store, StoreError},
};
use crate::json;
use ballast_proto::{ErrorCode, Failure, fault, v1::Generation};
use serde::{Deserialize, Serialize};

/// Adapter weights, with PEFT's names.
pub const ADAPTER_MODEL: &str = "adapter_model.safetensors";
/// Moments and fixed-point exponents.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// What the tensors do not say.
pub const STATE: &str = "state.json";

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

/// Writes a checkpoint: its files, then the manifest, then `latest`. Saving the same state again changes nothing.
///
/// # Errors
/// `StorageFailed` when the store fails, or holds another state under the same step and generation; `RunDirectoryInUse` when
/// another coordinator has taken the store over.
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
    if is_there(store, &manifest_name, &manifest)? {
        return Ok(directory);
    }
    for (name, bytes) in files {
        store.put(&format!("{directory}/{name}"), bytes)?;
        fault::point("checkpoint", request.step);
    }
    fence(store, request.generation.epoch)?;
    match store.create(&manifest_name, &manifest) {
        // Ours all the same, if a network lost the answer and the client asked again.
        Err(StoreError::Exists(_)) if is_there(store, &manifest_name, &manifest)? => {}
        created => created?,
    }
    fault::point("manifest", request.step);
    store.put(LATEST, format!("{directory}\n").as_bytes())?;
    Ok(directory)
}

/// Whether the store holds this manifest already.
fn is_there(store: &dyn Store, name: &str, manifest: &[u8]) -> Result<bool, Failure> {
    match store.get(name) {
        Ok(existing) if existing == manifest => Ok(true),
        Ok(_) => {
            let message = format!("{name} exists already and is of another state");
            Err(Failure::new(ErrorCode::StorageFailed, message))
        }
        Err(StoreError::NotFound(_)) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Keeps the checkpoint just saved in `saved` and the `keep - 1` before it; removes the others, and what was never
/// completed. Newer ones than `saved` were passed over when the run went back, and the ledger has voided their steps; or they
/// are those of a newer coordinator than that of `epoch`, who then has nothing more to say.
///
/// # Errors
/// When the store fails or has been taken over; what is left is then still a set of complete checkpoints.
pub fn retain(store: &dyn Store, epoch: u64, keep: u32, saved: &str) -> Result<(), Failure> {
    fence(store, epoch)?;
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
pub(super) mod tests {
    use super::*;
    use crate::checkpoint::{AdapterShapes, LocalStore, MemoryStore, newest, take_epoch, tensors::tests as fixtures};
    use crate::disk::simulated::{Platter, SimulatedDisk};
    use ballast_basemodel::Projection;
    use std::{path::Path, sync::Arc};

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

    pub(crate) fn put(store: &dyn Store, step: u64, generation: u64) -> String {
        try_put(store, step, generation).unwrap()
    }

    pub(crate) fn try_put(store: &dyn Store, step: u64, generation: u64) -> Result<String, Failure> {
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
        save(store, &request)
    }

    pub(crate) fn newest_step(store: &dyn Store) -> (Option<u64>, usize) {
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
    fn a_coordinator_that_was_replaced_publishes_and_deletes_nothing() {
        let store = MemoryStore::default();
        take_epoch(&store).unwrap();
        let saved = put(&store, 10, 1);
        take_epoch(&store).unwrap();
        let adapter = fixtures::adapter(&shapes(), 11.0);
        let optimizer = fixtures::optimizer(&shapes(), 0.5, 11);
        let request = SaveRequest {
            step: 11,
            generation: Generation::new(1, 1),
            state_sha256: &[11; 32],
            adapter: &adapter,
            optimizer: &optimizer,
            config: &config(),
        };
        assert_eq!(save(&store, &request).unwrap_err().code, ErrorCode::RunDirectoryInUse);
        assert_eq!(retain(&store, 1, 1, &saved).unwrap_err().code, ErrorCode::RunDirectoryInUse);
        assert_eq!(newest_step(&store), (Some(10), 0));
        assert_eq!(store.get(LATEST).unwrap(), format!("{saved}\n"));
        // The new one finds the half-written directory, and removes it with its next checkpoint.
        let second = SaveRequest { generation: Generation::new(2, 2), ..request };
        retain(&store, 2, 1, &save(&store, &second).unwrap()).unwrap();
        assert_eq!(steps_left(&store), [11]);
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
        retain(&store, 1, 2, &saved[3]).unwrap();
        assert_eq!(steps_left(&store), [40, 30]);
        retain(&store, 1, 0, &saved[3]).unwrap();
        assert_eq!(steps_left(&store), [40]);
    }

    #[test]
    fn a_newer_checkpoint_that_was_passed_over_does_not_displace_the_one_just_saved() {
        let store = MemoryStore::default();
        put(&store, 10, 1);
        store.put("checkpoints/step-00000010.g1/state.json", b"{").unwrap();
        put(&store, 4, 1);
        let saved = put(&store, 6, 2);
        retain(&store, 1, 1, &saved).unwrap();
        assert_eq!(steps_left(&store), [6]);
    }

    /// Whatever operation of a save is the first to find no room.
    #[test]
    fn a_disk_that_fills_up_in_the_middle_costs_only_the_checkpoint_that_was_being_saved() {
        let mut saved = false;
        for operations in 0.. {
            let disk = SimulatedDisk::new(Platter::default());
            let store = LocalStore::open_on(Arc::new(disk.clone()), Path::new("/run")).unwrap();
            put(&store, 10, 1);
            disk.fill_up_after(operations);
            saved = try_put(&store, 20, 1).is_ok();
            // Only `latest` may be missing after the manifest is there.
            let published = store.get(&format!("checkpoints/step-00000020.g1/{MANIFEST}")).is_ok();
            assert!(published || !saved);
            assert_eq!(
                newest_step(&store),
                (Some(if published { 20 } else { 10 }), 0),
                "after {operations} operations"
            );
            disk.make_room();
            put(&store, 20, 1);
            assert_eq!(newest_step(&store), (Some(20), 0), "after {operations} operations");
            if saved {
                assert!(operations >= 20, "{operations} operations make a checkpoint");
                break;
            }
        }
        assert!(saved);
    }

    /// A store of which one object cannot be reached.
    struct OutOfReach(MemoryStore, String);

    impl Store for OutOfReach {
        fn place(&self) -> String {
            self.0.place()
        }
        fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
            self.0.put(name, bytes)
        }
        fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
            self.0.create(name, bytes)
        }
        fn get(&self, name: &str) -> Result<bytes::Bytes, StoreError> {
            let source = std::io::ErrorKind::TimedOut.into();
            let unavailable = StoreError::Unavailable { action: "read", name: name.to_owned(), source };
            if name == self.1 { Err(unavailable) } else { self.0.get(name) }
        }
        fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
            self.0.list(prefix)
        }
        fn delete(&self, name: &str) -> Result<(), StoreError> {
            self.0.delete(name)
        }
    }

    #[test]
    fn a_checkpoint_that_cannot_be_reached_is_not_passed_over_for_an_older_one() {
        for file in [MANIFEST, OPTIMIZER] {
            let store = MemoryStore::default();
            put(&store, 10, 1);
            let newest_directory = put(&store, 20, 1);
            let store = OutOfReach(store, format!("{newest_directory}/{file}"));
            let failure = newest(&store, &shapes(), &|_| Ok(())).unwrap_err();
            assert_eq!(failure.code, ErrorCode::StorageFailed);
            assert!(failure.message.contains(&format!("{newest_directory}/{file}")), "{failure}");
        }
        let store = MemoryStore::default();
        let directory = put(&store, 10, 1);
        let store = OutOfReach(store, format!("{directory}/{MANIFEST}"));
        let failure = crate::checkpoint::same_history(&store, 0).unwrap_err();
        assert_eq!(failure.code, ErrorCode::StorageFailed);
    }
}
