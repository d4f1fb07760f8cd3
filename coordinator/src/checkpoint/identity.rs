//! What a run is: `run.json`, and whether a run directory may be continued with a run file.

use super::{
    sha256_hex,
    store::{Store, StoreError},
};
use crate::config::{Resume, RunFile};
use crate::json;
use ballast_proto::{ErrorCode, Failure, v1::NumericsFingerprint};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the run's record.
pub const RUN_FILE: &str = "run.json";

/// Everything that shapes the bits of a run, as name and value. Two runs with the same identity train the same adapter,
/// whatever their number of workers and threads; only the number of steps may grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(BTreeMap<String, String>);

impl Identity {
    /// The identity of a run file with these resolved target modules, base model and prepared set.
    #[must_use]
    pub fn new(run: &RunFile, target_modules: &[String], model_sha256: &str, data_sha256: &str) -> Self {
        let (lora, train) = (&run.lora, &run.train);
        let fields = [
            ("base model", model_sha256.to_owned()),
            ("prepared data", data_sha256.to_owned()),
            ("run.seed", run.run.seed.to_string()),
            ("model.dtype", format!("{:?}", run.model.dtype).to_lowercase()),
            ("lora.rank", lora.rank.to_string()),
            ("lora.alpha", lora.alpha.to_string()),
            ("lora.rslora", lora.rslora.to_string()),
            ("lora.dropout", lora.dropout.to_string()),
            ("lora.target_modules", target_modules.join(", ")),
            ("train.global_batch", train.global_batch.to_string()),
            ("train.micro_batch_tokens", train.micro_batch_tokens.to_string()),
            ("train.learning_rate", train.learning_rate.to_string()),
            ("train.schedule", format!("{:?}", train.schedule).to_lowercase()),
            ("train.warmup_steps", train.warmup_steps.to_string()),
            ("train.weight_decay", train.weight_decay.to_string()),
            ("train.beta1", train.beta1.to_string()),
            ("train.beta2", train.beta2.to_string()),
            ("train.epsilon", train.epsilon.to_string()),
            ("train.clip_norm", train.clip_norm.to_string()),
            ("train.reduction", format!("{:?}", train.reduction).to_lowercase()),
        ];
        Self(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The differences, as `name (there, here)`.
    fn differences(&self, other: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let value = |identity: &Self, name: &String| identity.0.get(name).map_or("not set", String::as_str).to_owned();
        names
            .into_iter()
            .filter(|name| self.0.get(*name) != other.0.get(*name))
            .map(|name| format!("{name} ({} there, {} here)", value(self, name), value(other, name)))
            .collect()
    }
}

/// `run.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this file.
    pub format: u32,
    /// Name of the run.
    pub name: String,
    /// Optimizer steps in the whole run.
    pub total_steps: u64,
    /// What shapes its bits.
    pub identity: Identity,
    /// SHA-256 (hex) of the binary that started it last.
    pub binary_sha256: String,
    /// The arithmetic of its first worker.
    pub numerics: Option<Numerics>,
    /// The resolved run file.
    pub settings: serde_json::Value,
}

/// A numerics fingerprint, as `run.json` keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numerics {
    binary_sha256: String,
    backend: String,
    arithmetic: String,
    weights_sha256: String,
}

impl From<NumericsFingerprint> for Numerics {
    fn from(wire: NumericsFingerprint) -> Self {
        let NumericsFingerprint { binary_sha256, backend, arithmetic, weights_sha256 } = wire;
        Self { binary_sha256, backend, arithmetic, weights_sha256 }
    }
}

impl From<Numerics> for NumericsFingerprint {
    fn from(kept: Numerics) -> Self {
        let Numerics { binary_sha256, backend, arithmetic, weights_sha256 } = kept;
        Self { binary_sha256, backend, arithmetic, weights_sha256 }
    }
}

impl RunRecord {
    /// The version that this code writes and reads.
    pub const FORMAT: u32 = 1;

    /// Writes it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn write(&self, store: &dyn Store) -> Result<(), Failure> {
        Ok(store.put(RUN_FILE, &json::file(self))?)
    }

    /// Hash of all that decides which state a step leads to: a step redone under the same recipe must reproduce its
    /// hash. The number of steps belongs to it where the learning rate depends on it.
    #[must_use]
    pub fn recipe(&self, steps_matter: bool) -> String {
        let steps = if steps_matter { self.total_steps } else { 0 };
        sha256_hex(format!("{:?} {steps}", self.identity.0).as_bytes())
    }
}

/// Decides whether this run may use a store; returns what it holds already.
///
/// # Errors
/// `RunDirectoryInUse` when it holds a run of another name, or any run where `resume` forbids continuing one;
/// `CheckpointMismatch` when the run there differs, naming every difference; `StorageFailed` when it cannot be read.
pub fn admit(store: &dyn Store, run: &RunRecord, resume: Resume) -> Result<Option<RunRecord>, Failure> {
    let bytes = match store.get(RUN_FILE) {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound(_)) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let place = store.place();
    let mismatch = |message: String| Err(Failure::new(ErrorCode::CheckpointMismatch, message));
    let there: RunRecord = match serde_json::from_slice(&bytes) {
        Ok(record) => record,
        Err(e) => return mismatch(format!("{RUN_FILE} of {place} cannot be read: {e}")),
    };
    let in_use = |message: String| Err(Failure::new(ErrorCode::RunDirectoryInUse, message));
    if resume == Resume::Never {
        return in_use(format!(
            "{place} holds run {:?} already and checkpoint.resume is \"never\": choose another run.dir or \
             checkpoint.store",
            there.name
        ));
    }
    if there.name != run.name {
        return in_use(format!(
            "{place} holds run {:?}, this is {:?}: choose another run.dir or checkpoint.store",
            there.name, run.name
        ));
    }
    if there.format != RunRecord::FORMAT {
        return mismatch(format!("{RUN_FILE} has format {}, known is {}", there.format, RunRecord::FORMAT));
    }
    let differences = there.identity.differences(&run.identity);
    if !differences.is_empty() {
        return mismatch(format!(
            "{place} holds a run that differs in {}: undo the change or choose another run.dir or checkpoint.store",
            differences.join(", ")
        ));
    }
    if run.total_steps < there.total_steps {
        return mismatch(format!(
            "{place} holds a run of {} steps, this one has {}: steps may be added, not taken away",
            there.total_steps, run.total_steps
        ));
    }
    Ok(Some(there))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::MemoryStore;

    fn record(change: impl Fn(&mut RunFile), total_steps: u64) -> RunRecord {
        let mut run = RunFile::default();
        change(&mut run);
        RunRecord {
            format: RunRecord::FORMAT,
            name: run.run.name.clone(),
            total_steps,
            identity: Identity::new(&run, &["q_proj".into()], "m", "d"),
            binary_sha256: "b".into(),
            numerics: None,
            settings: serde_json::Value::Null,
        }
    }

    fn admitted(there: &RunRecord, here: &RunRecord, resume: Resume) -> Result<bool, Failure> {
        let store = MemoryStore::default();
        there.write(&store).unwrap();
        admit(&store, here, resume).map(|found| found.is_some())
    }

    #[test]
    fn an_empty_directory_admits_anyone() {
        assert!(admit(&MemoryStore::default(), &record(|_| (), 5), Resume::Never).unwrap().is_none());
    }

    #[test]
    fn what_shapes_no_bit_and_more_steps_may_change() {
        let there = record(|_| (), 5);
        let here = record(
            |run| {
                run.cluster.workers = 7;
                run.cluster.threads = 3;
                run.checkpoint.every = 9;
                run.train.activation_checkpointing = true;
            },
            8,
        );
        assert!(admitted(&there, &here, Resume::Auto).unwrap());
        let fewer = admitted(&there, &record(|_| (), 4), Resume::Auto).unwrap_err();
        assert!(fewer.message.contains("5 steps"), "{fewer}");
    }

    #[test]
    fn every_difference_is_named() {
        let here = record(
            |run| {
                run.run.seed = 1;
                run.lora.rank = 3;
            },
            5,
        );
        let failure = admitted(&record(|_| (), 5), &here, Resume::Auto).unwrap_err();
        assert_eq!(failure.code, ErrorCode::CheckpointMismatch);
        assert!(failure.message.contains("lora.rank (16 there, 3 here), run.seed (42 there, 1 here)"), "{failure}");
    }

    #[test]
    fn another_run_and_a_forbidden_resume_are_refused() {
        let there = record(|_| (), 5);
        let renamed = record(|run| run.run.name = "b".into(), 5);
        assert_eq!(admitted(&there, &renamed, Resume::Auto).unwrap_err().code, ErrorCode::RunDirectoryInUse);
        assert_eq!(admitted(&there, &there, Resume::Never).unwrap_err().code, ErrorCode::RunDirectoryInUse);
        let store = MemoryStore::default();
        store.put(RUN_FILE, b"not json").unwrap();
        assert_eq!(admit(&store, &there, Resume::Auto).unwrap_err().code, ErrorCode::CheckpointMismatch);
    }

    #[test]
    fn the_recipe_knows_the_steps_only_where_they_matter() {
        let (short, long) = (record(|_| (), 5), record(|_| (), 8));
        assert_eq!(short.recipe(false), long.recipe(false));
        assert_ne!(short.recipe(true), long.recipe(true));
        assert_ne!(short.recipe(false), record(|run| run.run.seed = 1, 5).recipe(false));
    }
}
