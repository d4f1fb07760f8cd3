//! `metrics/steps.jsonl`: one line a step, for plots.

use ballast_proto::{ErrorCode, Failure};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
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
}

/// The file, open for appending.
pub(super) struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens it, dropping lines of steps after `from` (they are trained again) and a torn last line.
    pub(super) fn open(run_directory: &Path, from: u64) -> Result<(Self, Vec<StepMetrics>), Failure> {
        let path = run_directory.join("metrics").join("steps.jsonl");
        let failed = |e: io::Error| failure(&path, &e);
        let directory = run_directory.join("metrics");
        fs::create_dir_all(&directory).map_err(failed)?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(failed(e)),
        };
        let kept: Vec<StepMetrics> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|m: &StepMetrics| m.step <= from)
            .collect();
        let lines: String = kept.iter().map(line).collect();
        if lines != text {
            let temporary = directory.join(".steps.jsonl.tmp");
            let mut file = File::create(&temporary).map_err(failed)?;
            file.write_all(lines.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            fs::rename(&temporary, &path).and_then(|()| File::open(&directory)?.sync_all()).map_err(failed)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        Ok((Self { path, file }, kept))
    }

    pub(super) fn append(&mut self, metrics: &StepMetrics) -> Result<(), Failure> {
        self.file.write_all(line(metrics).as_bytes()).map_err(|e| failure(&self.path, &e))
    }
}

fn line(metrics: &StepMetrics) -> String {
    // Numbers and strings always serialize.
    let mut line = serde_json::to_string(metrics).unwrap_or_default();
    line.push('\n');
    line
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::new(ErrorCode::StorageFailed, format!("{}: {error}", path.display()))
}
