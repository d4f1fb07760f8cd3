//! Opening the run directory and the store of its checkpoints: lock, identity, ledger, newest checkpoint, epoch.

use super::blueprint::Blueprint;
use crate::{
    checkpoint::{self, Checkpoint, LocalStore, RunRecord, StateRecord, Store},
    disk::{Disk, Lock},
    ledger::{LEDGER, Ledger},
    report::{REPORT, Report},
    site::Site,
};
use ballast_proto::{ErrorCode, Failure};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

const LOCK: &str = ".lock";

/// A run directory that belongs to this coordinator alone.
pub(super) struct RunDirectory {
    pub(super) path: PathBuf,
    /// The directory itself, as a store: for the report.
    pub(super) files: Arc<LocalStore>,
    /// Where checkpoints, epochs, `run.json` and the adapter are kept: `checkpoint.store`, or the directory itself.
    pub(super) store: Arc<dyn Store>,
    pub(super) ledger: Ledger,
    pub(super) record: RunRecord,
    /// Step and directory of the newest checkpoint that verifies.
    pub(super) checkpoint: Option<(u64, String)>,
    pub(super) warnings: Vec<String>,
    /// Held until the coordinator ends.
    pub(super) lock: Lock,
}

impl RunDirectory {
    /// Opens or creates it.
    ///
    /// # Errors
    /// `RunDirectoryInUse`, `CheckpointMismatch`, `CheckpointCorrupt`, `LedgerCorrupt`, `LedgerElsewhere` or `StorageFailed`.
    pub(super) fn open(site: &Site, blueprint: &Blueprint) -> Result<Self, Failure> {
        let path = blueprint.run.run.dir.clone();
        let files = Arc::new(LocalStore::open_on(Arc::clone(&site.disk), &path)?);
        let lock = lock(&*site.disk, &path)?;
        files.clear_temporary()?;
        let store: Arc<dyn Store> = match blueprint.run.checkpoint.store.as_str() {
            "" => Arc::clone(&files) as _,
            url => checkpoint::open_store(url)?,
        };
        let mut record = blueprint.record();
        let there = checkpoint::admit(&*store, &record, blueprint.run.checkpoint.resume)?;
        let (ledger, repair) = Ledger::open_on(Arc::clone(&site.disk), &path.join(LEDGER))?;
        checkpoint::same_history(&*store, ledger.epoch())?;
        let accept = |state: &StateRecord| match ledger.step(state.step) {
            Some(step) if step.state_sha256 == state.state_sha256 => Ok(()),
            Some(_) => Err("the ledger holds another state of this step".to_owned()),
            None => Err("the ledger does not hold this step".to_owned()),
        };
        let (found, passed_over) = checkpoint::newest(&*store, &blueprint.shapes, &accept)?;
        let mut warnings: Vec<String> = repair.into_iter().chain(passed_over).collect();
        if let Some(there) = there {
            if there.total_steps != record.total_steps && blueprint.steps_matter() {
                warnings.push(format!(
                    "the run had {} steps and now has {}: learning rates from here on follow the longer schedule",
                    there.total_steps, record.total_steps
                ));
            }
            record.numerics = there.numerics;
        }
        let checkpoint = found.map(|c: Checkpoint| (c.state.step, c.directory));
        Ok(Self { path, files, store, ledger, record, checkpoint, warnings, lock })
    }

    /// The report of the run, if it has nothing left to do.
    pub(super) fn finished(&self) -> Option<Report> {
        let report: Report = serde_json::from_slice(&self.files.get(REPORT).ok()?).ok()?;
        let done =
            report.finished && report.steps == self.record.total_steps && self.checkpoint_step() == Some(report.steps);
        done.then_some(report)
    }

    /// Takes a new epoch and opens a new chapter of the ledger: from here on the directory has changed hands.
    pub(super) fn take(&mut self, recipe: &str, samples: u64, now_ms: u64) -> Result<u64, Failure> {
        self.record.write(&*self.store)?;
        let epoch = checkpoint::take_epoch(&*self.store)?;
        self.ledger.start(epoch, recipe, samples, now_ms)?;
        Ok(epoch)
    }

    /// Step of the newest checkpoint.
    pub(super) fn checkpoint_step(&self) -> Option<u64> {
        self.checkpoint.as_ref().map(|(step, _)| *step)
    }
}

/// Locks the directory against a second live coordinator.
fn lock(disk: &dyn Disk, path: &Path) -> Result<Lock, Failure> {
    let name = path.join(LOCK);
    let locked = disk.lock(&name);
    let locked =
        locked.map_err(|e| Failure::new(ErrorCode::StorageFailed, format!("cannot lock {}: {e}", name.display())))?;
    locked.ok_or_else(|| {
        let message =
            format!("another coordinator is running on {}: stop it, or choose another run.dir", path.display());
        Failure::new(ErrorCode::RunDirectoryInUse, message)
    })
}
