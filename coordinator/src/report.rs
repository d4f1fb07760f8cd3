//! `report.json`: what a run did, for people and for `ballast compare`.

use crate::{
    evaluation::Evaluation,
    ledger::{Skipped, Span, Verified},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Name of the report within the run directory.
pub const REPORT: &str = "report.json";

/// The report of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this file.
    pub format: u32,
    /// Name of the run.
    pub run: String,
    /// Whether everything that was asked for is done.
    pub finished: bool,
    /// How it ended, in a sentence.
    pub outcome: String,
    /// Stable code of what ended it early.
    pub error_code: Option<String>,
    /// Steps committed.
    pub steps: u64,
    /// Steps in the whole run.
    pub total_steps: u64,
    /// Everything of the run file that shapes the result, by `section.key`.
    pub settings: Map<String, Value>,
    /// What went in, by hash.
    pub inputs: Inputs,
    /// What the preparation of the data counted.
    pub data: Value,
    /// Mean loss of every step that was not skipped, from the first.
    pub losses: Vec<f64>,
    /// Steps whose update was not applied.
    #[serde(default)]
    pub skipped: Vec<SkippedStep>,
    /// How fast it went.
    pub throughput: Throughput,
    /// Workers that trained last.
    pub workers: Vec<Worker>,
    /// What the ledger proves: every sample was trained, or skipped, exactly once per epoch.
    pub exactly_once: Verified,
    /// Checkpoints of the process that wrote this.
    #[serde(default)]
    pub checkpoints: Checkpoints,
    /// Every generation that committed a step.
    pub generations: Vec<Span>,
    /// Base and tuned model, measured.
    pub evaluation: Option<Evaluation>,
    /// The result.
    pub adapter: Option<Adapter>,
    /// What a person should have seen.
    pub warnings: Vec<String>,
}

/// What went in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// SHA-256 of the base model's files.
    pub model_sha256: String,
    /// SHA-256 of the prepared samples.
    pub data_sha256: String,
    /// Samples.
    pub samples: u64,
    /// SHA-256 of the coordinator's binary.
    pub binary_sha256: String,
}

/// How fast it went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Tokens of all steps.
    pub tokens: u64,
    /// Wall time of all steps, in seconds.
    pub training_seconds: f64,
    /// Tokens trained a second.
    pub tokens_per_second: Option<f64>,
    /// Median wall time of a step, in seconds.
    pub median_step_seconds: Option<f64>,
    /// Wall time of the evaluation, in seconds.
    pub evaluation_seconds: Option<f64>,
    /// Wall time of this process from opening the run directory to the end, in seconds.
    pub total_seconds: f64,
}

/// A step whose update was not applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedStep {
    /// 1-based number.
    pub step: u64,
    /// Why.
    #[serde(flatten)]
    pub skipped: Skipped,
}

/// What became of checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoints {
    /// Saved.
    pub saved: u64,
    /// Not saved, while training went on (`checkpoint.on_failure = "continue"`).
    pub failed: u64,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Its rank.
    pub rank: usize,
    /// Its name.
    pub name: String,
}

/// The trained adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapter {
    /// Where it lies, within the run directory.
    pub path: String,
    /// SHA-256 of `adapter_model.safetensors`.
    pub sha256: String,
}

impl Report {
    /// The version that this code writes.
    pub const FORMAT: u32 = 1;
}
