//! The ledger's file.

use super::{
    Record, StepRecord, Tail, Verified,
    lines::{encode, read_on},
    verify,
};
use crate::disk::{self, Disk, DiskFile, RealDisk};
use crate::membership::SlowWorker;
use ballast_proto::{Coded, ErrorCode, Failure};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What can be wrong with a ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line before the last does not verify, or records contradict each other.
    #[error("{}, line {line}: {problem}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// Its records do not prove that every sample was trained exactly once per epoch.
    #[error("{}: {problem}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The first rule that is broken.
        problem: String,
    },
    /// A redone step led to another state.
    #[error(
        "redoing step {step} led to state {found}, but it was {recorded} when it was first trained: a machine computes wrongly"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// Hash now, and whether it was skipped.
        found: String,
        /// Those of the voided record.
        recorded: String,
    },
    /// A step out of order.
    #[error("step {step} cannot follow step {head}")]
    OutOfOrder {
        /// The step offered.
        step: u64,
        /// The newest step there is.
        head: u64,
    },
}

impl Coded for LedgerError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Io { .. } => ErrorCode::StorageFailed,
            Self::Corrupt { .. } | Self::Broken { .. } => ErrorCode::LedgerCorrupt,
            Self::Diverged { .. } => ErrorCode::StateDiverged,
            Self::OutOfOrder { .. } => ErrorCode::Internal,
        }
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// The ledger of one run, open for appending.
#[derive(Debug)]
pub struct Ledger {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Steps that count, by number.
    lineage: BTreeMap<u64, Entry>,
    /// Voided steps, by number; the newest of each.
    voided: BTreeMap<u64, Entry>,
    recipe: Arc<str>,
    epoch: u64,
    last_generation: u64,
}

#[derive(Debug)]
struct Entry {
    record: StepRecord,
    /// The recipe it was trained by.
    recipe: Arc<str>,
}

impl Ledger {
    /// Opens or creates the ledger. A torn last line (the coordinator died while writing it) is cut off; the second
    /// value says so.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn open(path: &Path) -> Result<(Self, Option<String>), LedgerError> {
        Self::open_on(Arc::new(RealDisk), path)
    }

    pub(crate) fn open_on(disk: Arc<dyn Disk>, path: &Path) -> Result<(Self, Option<String>), LedgerError> {
        let failed = |source| LedgerError::Io { path: path.to_owned(), source };
        let (records, whole, tail) = read_on(&*disk, path)?;
        let mut file = disk.append(path).map_err(failed)?;
        let repair = if tail != Tail::Whole {
            file.truncate(whole).and_then(|()| file.sync()).map_err(failed)?;
            Some(format!("{}: cut off a torn last line after {} records", path.display(), records.len()))
        } else {
            None
        };
        disk.sync_directory(disk::parent(path)).map_err(failed)?;
        let mut ledger = Self {
            disk,
            path: path.to_owned(),
            file,
            lineage: BTreeMap::new(),
            voided: BTreeMap::new(),
            recipe: Arc::from(""),
            epoch: 0,
            last_generation: 0,
        };
        for (index, record) in records.into_iter().enumerate() {
            ledger.apply(record).map_err(|e| LedgerError::Corrupt {
                path: path.to_owned(),
                line: index + 1,
                problem: e.to_string(),
            })?;
        }
        Ok((ledger, repair))
    }

    /// Newest step that counts; 0 when there is none.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.lineage.last_key_value().map_or(0, |(step, _)| *step)
    }

    /// The record of a step that counts.
    #[must_use]
    pub fn step(&self, step: u64) -> Option<&StepRecord> {
        self.lineage.get(&step).map(|entry| &entry.record)
    }

    /// All steps that count, in order.
    pub fn steps(&self) -> impl Iterator<Item = &StepRecord> {
        self.lineage.values().map(|entry| &entry.record)
    }

    /// State hashes of all steps that count.
    ///
    /// # Errors
    /// [`LedgerError::Broken`] when one is no hash.
    pub fn hashes(&self) -> Result<BTreeMap<u64, Vec<u8>>, LedgerError> {
        let decode = |step: &StepRecord| {
            let problem = |e| format!("step {}: state hash: {e}", step.step);
            let hash = hex::decode(&step.state_sha256).map_err(problem);
            hash.map(|hash| (step.step, hash))
                .map_err(|problem| LedgerError::Broken { path: self.path.clone(), problem })
        };
        self.steps().map(decode).collect()
    }

    /// Number of the newest generation that committed anything.
    #[must_use]
    pub fn last_generation(&self) -> u64 {
        self.last_generation
    }

    /// Epoch of the coordinator that opened the newest chapter; 0 when there is none.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Proves from the file, read back, that every one of `samples` was trained exactly once per epoch.
    ///
    /// # Errors
    /// [`LedgerError::Broken`] when it was not; the others when the file cannot be read back.
    pub fn verify(&self, samples: u64) -> Result<Verified, LedgerError> {
        let (records, ..) = read_on(&*self.disk, &self.path)?;
        verify(&records, samples).map_err(|problem| LedgerError::Broken { path: self.path.clone(), problem })
    }

    /// Records that a coordinator takes over; `samples` are in the prepared set.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn start(&mut self, epoch: u64, recipe: &str, samples: u64, at_ms: u64) -> Result<(), LedgerError> {
        self.append(Record::Start { epoch, recipe: recipe.to_owned(), samples, at_ms })
    }

    /// Records that steps after `to` are void: nobody has the state after the newest one any more.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn rewind(&mut self, to: u64) -> Result<(), LedgerError> {
        self.append(Record::Rewind { to })
    }

    /// Records that a worker held the others up.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn slow(&mut self, at_ms: u64, slow: SlowWorker) -> Result<(), LedgerError> {
        let SlowWorker { name: worker, step, ratio, drained, .. } = slow;
        self.append(Record::Slow { at_ms, step, worker, ratio, drained })
    }

    /// Records how a coordinator's work ended.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn end(&mut self, at_ms: u64, code: Option<ErrorCode>, reason: &str) -> Result<(), LedgerError> {
        let code = code.map(|code| code.as_str().to_owned());
        self.append(Record::End { at_ms, code, reason: reason.to_owned() })
    }

    /// Commits a step: when this returns, it is durable.
    ///
    /// # Errors
    /// [`LedgerError::Diverged`] when the step was trained before, by the same recipe, and led elsewhere.
    pub fn commit(&mut self, record: StepRecord) -> Result<(), LedgerError> {
        self.append(Record::Step(record))
    }

    fn append(&mut self, record: Record) -> Result<(), LedgerError> {
        let line = encode(&record);
        self.apply(record)?;
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync())
            .map_err(|source| LedgerError::Io { path: self.path.clone(), source })
    }

    /// Takes a record into account, refusing what contradicts the earlier ones.
    fn apply(&mut self, record: Record) -> Result<(), LedgerError> {
        match record {
            Record::Start { epoch, recipe, .. } => (self.epoch, self.recipe) = (epoch, recipe.into()),
            Record::End { .. } | Record::Slow { .. } => {}
            Record::Rewind { to } => {
                let void = self.lineage.split_off(&to.saturating_add(1));
                self.voided.extend(void);
            }
            Record::Step(record) => {
                let head = self.head();
                if record.step != head + 1 {
                    return Err(LedgerError::OutOfOrder { step: record.step, head });
                }
                if let Some(void) = self.voided.get(&record.step)
                    && void.recipe == self.recipe
                    && !self.recipe.is_empty()
                    && void.record.outcome() != record.outcome()
                {
                    let (found, recorded) = (record.outcome(), void.record.outcome());
                    return Err(LedgerError::Diverged { step: record.step, found, recorded });
                }
                self.last_generation = self.last_generation.max(record.generation.1);
                self.lineage.insert(record.step, Entry { record, recipe: Arc::clone(&self.recipe) });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{SampleSet, Skipped},
        *,
    };

    fn step(step: u64, state: u8) -> StepRecord {
        StepRecord {
            step,
            data_epoch: 0,
            generation: (1, step),
            samples: SampleSet::new([step as u32]).unwrap(),
            loss: 0.1 + step as f64,
            loss_tokens: 3,
            tokens: 4,
            state_sha256: hex::encode([state; 32]),
            at_ms: 1000 * step,
            skipped: None,
        }
    }

    fn ledger(path: &Path) -> Ledger {
        Ledger::open(path).unwrap().0
    }

    #[test]
    fn what_was_committed_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let mut written = ledger(&path);
        written.start(1, "r", 4, 7).unwrap();
        for n in 1..=3 {
            written.commit(step(n, n as u8)).unwrap();
        }
        let read_back = ledger(&path);
        assert_eq!((read_back.head(), read_back.last_generation()), (3, 3));
        assert_eq!(read_back.steps().cloned().collect::<Vec<_>>(), [step(1, 1), step(2, 2), step(3, 3)]);
        // Every line is plain JSON to other tools.
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            assert!(serde_json::from_str::<serde_json::Value>(line).unwrap()["crc32"].is_string());
        }
    }

    #[test]
    fn steps_come_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = ledger(&directory.path().join("ledger"));
        assert!(matches!(ledger.commit(step(2, 0)), Err(LedgerError::OutOfOrder { step: 2, head: 0 })));
        ledger.commit(step(1, 0)).unwrap();
        assert!(ledger.commit(step(1, 0)).is_err());
    }

    #[test]
    fn a_torn_tail_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let mut ledger = ledger(&path);
        ledger.commit(step(1, 1)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        ledger.commit(step(2, 2)).unwrap();
        let both = std::fs::read(&path).unwrap();
        for length in (whole.len() + 1..both.len()).step_by(6).chain([both.len() - 1]) {
            std::fs::write(&path, &both[..length]).unwrap();
            let (reopened, repair) = Ledger::open(&path).unwrap();
            assert_eq!(reopened.head(), 1);
            assert!(repair.is_some());
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn damage_before_the_last_line_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let mut ledger = ledger(&path);
        ledger.commit(step(1, 1)).unwrap();
        ledger.commit(step(2, 2)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = Ledger::open(&path).unwrap_err();
        assert_eq!(error.code(), ErrorCode::LedgerCorrupt);
        assert!(error.to_string().contains("line 1"), "{error}");
    }

    #[test]
    fn a_redone_step_must_reproduce_its_voided_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let mut first = ledger(&path);
        first.start(1, "r", 4, 7).unwrap();
        for n in 1..=3 {
            first.commit(step(n, n as u8)).unwrap();
        }
        drop(first);
        let mut second = ledger(&path);
        second.start(2, "r", 4, 7).unwrap();
        second.rewind(1).unwrap();
        assert_eq!(second.head(), 1);
        second.commit(step(2, 2)).unwrap();
        let error = second.commit(step(3, 9)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::StateDiverged);
        assert_eq!(second.head(), 2);
        let skipped = Some(Skipped { loss: SampleSet::new([3]).unwrap(), ..Skipped::default() });
        let error = second.commit(StepRecord { skipped, ..step(3, 3) }).unwrap_err();
        assert!(error.to_string().contains("(skipped: loss not finite"), "{error}");
        drop(second);
        // Under another recipe (more steps, so other learning rates) there is nothing to reproduce.
        let mut third = ledger(&path);
        third.start(3, "other", 4, 7).unwrap();
        third.rewind(2).unwrap();
        third.commit(step(3, 9)).unwrap();
    }
}
