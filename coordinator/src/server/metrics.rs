//! `metrics/steps.jsonl`: one line a step, for plots.

use crate::{
    disk::{self, Disk, DiskFile},
    json,
    ledger::Skipped,
};
use ballast_proto::{ErrorCode, Failure};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a step measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// 1-based number.
    pub step: u64,
    /// Pass over the data, counted from 0.
    pub epoch: u64,
    /// The generation that computed it, as `epoch.number`.
    pub generation: String,
    /// Mean loss over the global batch, in nats a token.
    pub loss: f64,
    /// Tokens that the mean was taken over.
    pub loss_tokens: u64,
    /// Tokens of the step.
    pub tokens: u64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Wall time since the step before it, in seconds.
    pub seconds: f64,
    /// Longest time a rank spent computing.
    pub compute_seconds: f64,
    /// Longest time a rank spent in collectives.
    pub reduce_seconds: f64,
    /// How often the step was recomputed with smaller exponents.
    pub recomputed: u32,
    /// Why its update was not applied: its loss is that of what was finite, and it has no gradient norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
}

/// What opening the file gave.
pub(super) struct Opened {
    pub(super) file: MetricsFile,
    /// Metrics of steps that are not trained again.
    pub(super) earlier: Vec<StepMetrics>,
    /// What of it is lost.
    pub(super) warning: Option<String>,
}

/// The file, open for appending.
pub(super) struct MetricsFile {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    path: PathBuf,
    file: Box<dyn DiskFile>,
}

impl MetricsFile {
    /// Opens it, dropping lines of steps after `from` (they are trained again) and lines that cannot be read: a torn
    /// last one, and others with a warning, as they cost plots and the report's times but not the run.
    pub(super) fn open(disk: Arc<dyn Disk>, run_directory: &Path, from: u64) -> Result<Opened, Failure> {
        let directory = run_directory.join("metrics");
        let path = directory.join("steps.jsonl");
        let failed = |e: io::Error| failure(&path, &e);
        disk::make_directories(&*disk, &directory).map_err(failed)?;
        let text = match disk.read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(failed(e)),
        };
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let (readable, unreadable): (Vec<_>, Vec<_>) = text[..whole]
            .split_inclusive(|byte| *byte == b'\n')
            .map(serde_json::from_slice::<StepMetrics>)
            .partition(Result::is_ok);
        let earlier: Vec<StepMetrics> = readable.into_iter().flatten().filter(|m| m.step <= from).collect();
        let lost = unreadable.len();
        let warning = (lost > 0).then(|| {
            format!(
                "{}: {lost} lines cannot be read and are dropped: the report's times lack their steps",
                path.display()
            )
        });
        let lines: String = earlier.iter().map(line).collect();
        if lines.as_bytes() != text {
            replace(&*disk, &directory, &path, lines.as_bytes()).map_err(failed)?;
        }
        let file = disk.append(&path).map_err(failed)?;
        Ok(Opened { file: Self { disk, directory, path, file }, earlier, warning })
    }

    /// Drops the lines of steps after `to`.
    pub(super) fn rewind(&mut self, to: u64) -> Result<(), Failure> {
        let run_directory = self.directory.parent().unwrap_or(&self.directory).to_owned();
        *self = Self::open(Arc::clone(&self.disk), &run_directory, to)?.file;
        Ok(())
    }

    pub(super) fn append(&mut self, metrics: &StepMetrics) -> Result<(), Failure> {
        self.file.write_all(line(metrics).as_bytes()).map_err(|e| failure(&self.path, &e))
    }
}

/// Gives the file another content, at once.
fn replace(disk: &dyn Disk, directory: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = directory.join(".steps.jsonl.tmp");
    let mut file = match disk.create(&temporary) {
        // A process has died here.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove_file(&temporary)?;
            disk.create(&temporary)?
        }
        created => created?,
    };
    file.write_all(content).and_then(|()| file.sync())?;
    disk.rename(&temporary, path)?;
    disk.sync_directory(directory)
}

fn line(metrics: &StepMetrics) -> String {
    json::line(metrics) + "\n"
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::new(ErrorCode::StorageFailed, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use std::fs;

    fn open(directory: &Path, from: u64) -> Opened {
        MetricsFile::open(Arc::new(RealDisk), directory, from).unwrap()
    }

    fn metrics(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: 0,
            generation: "1.1".into(),
            loss: 1.5,
            loss_tokens: 3,
            tokens: 4,
            grad_norm: 0.1,
            learning_rate: 1e-4,
            seconds: 0.25,
            compute_seconds: 0.2,
            reduce_seconds: 0.01,
            recomputed: 0,
            skipped: None,
        }
    }

    #[test]
    fn only_steps_that_count_are_kept_and_what_is_lost_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics/steps.jsonl");
        let mut opened = open(directory.path(), 0);
        (1..=4).for_each(|step| opened.file.append(&metrics(step)).unwrap());
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"step\":5,\"ep").unwrap();
        let mut opened = open(directory.path(), 3);
        assert_eq!((opened.earlier, opened.warning), ((1..=3).map(metrics).collect(), None));
        assert_eq!(fs::read_to_string(&path).unwrap(), (1..=3).map(|step| line(&metrics(step))).collect::<String>());

        opened.file.rewind(2).unwrap();
        opened.file.append(&metrics(3)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), (1..=3).map(|step| line(&metrics(step))).collect::<String>());

        let mut bytes = fs::read(&path).unwrap();
        bytes[0] = 0xff;
        fs::write(&path, bytes).unwrap();
        let opened = open(directory.path(), 3);
        assert_eq!(opened.earlier, [metrics(2), metrics(3)]);
        assert!(opened.warning.unwrap().contains("steps.jsonl: 1 lines cannot be read"));
    }
}
