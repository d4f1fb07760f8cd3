//! The closed sets of words and the lists that values of the run file are taken from.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Arithmetic type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// The upper half of them, with arithmetic in f32; on CUDA devices.
    Bf16,
}

/// Which linear layers get an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// The word `all-linear`.
    Word(String),
    /// Module names.
    Names(Vec<String>),
}

/// One path or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Paths {
    /// One path.
    One(PathBuf),
    /// Several, read in this order.
    Many(Vec<PathBuf>),
}

impl TargetModules {
    /// The word that stands for every linear layer of the decoder.
    pub const ALL_LINEAR: &'static str = "all-linear";

    /// Every module name that can be targeted, in the order of a decoder layer.
    pub const KNOWN: &'static [&'static str] =
        &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

    /// The module names in the order of a decoder layer, `all-linear` resolved.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        let all = matches!(self, Self::Word(word) if word == Self::ALL_LINEAR);
        let named = |name: &str| match self {
            Self::Word(word) => word == name,
            Self::Names(names) => names.iter().any(|n| n == name),
        };
        Self::KNOWN.iter().copied().filter(|name| all || named(name)).collect()
    }
}

impl Paths {
    /// The paths, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// Shape of a row of data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowFormat {
    /// By the fields of the first row.
    #[default]
    Auto,
    /// `{"messages": [{"role", "content"}, ...]}` (OpenAI).
    Messages,
    /// `{"conversations": [{"from", "value"}, ...]}` (ShareGPT).
    Sharegpt,
    /// `{"instruction", "input", "output"}` (Alpaca).
    Alpaca,
    /// `{"prompt", "completion"}`.
    PromptCompletion,
    /// Two fields named by `prompt_field` and `answer_field`.
    Fields,
}

/// Which turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Turns {
    /// The last one.
    #[default]
    Last,
    /// All.
    All,
}

/// Policy for malformed rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadRow {
    /// Stop, naming file, line and field.
    #[default]
    Fail,
    /// Leave it out and count it.
    Skip,
}

/// Policy for samples that are too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTooLong {
    /// Stop, naming the row.
    #[default]
    Fail,
    /// Cut the end off and count it.
    Truncate,
    /// Leave it out and count it.
    Skip,
}

/// LookAhead mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LookAheadMode {
    /// No rewriting.
    Off,
    /// Preview of the answer's first tokens.
    Real,
    /// Preview of a fixed prefix.
    #[default]
    Virtual,
}

/// How a preview is put into the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreviewLevel {
    /// As text; the prompt is tokenized as a whole.
    #[default]
    Text,
    /// As the answer's own token ids.
    Token,
}

/// Policy for short answers in real mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShortAnswer {
    /// Preview the whole answer (the authors' behaviour).
    #[default]
    Full,
    /// Preview at most half of it, rounded up.
    Cap,
    /// Leave the row as it is.
    Skip,
}

/// Course of the learning rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays at its peak.
    Constant,
    /// Falls in a line to 0 at the last step.
    #[default]
    Linear,
    /// Falls in half a cosine to 0 at the last step.
    Cosine,
}

/// How gradients are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// As integers: the same bits for any number of workers.
    #[default]
    Exact,
    /// As f32: less traffic, but bits that depend on the number of workers.
    Fast,
    /// As f32, and as bf16 between workers over NCCL: half of that traffic, and coarser. Over TCP they travel as f32.
    #[serde(rename = "fast-bf16")]
    FastBf16,
}

/// Policy for steps whose loss or gradient is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// End the run, naming the step; the checkpoints before it are kept.
    #[default]
    Stop,
    /// Let the step go by without an update, and record which samples it was about.
    Skip,
}

/// What a worker computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// A CUDA device: that of the worker's number on its machine.
    Cuda,
}

/// Policy for workers that hold the others up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnSlowWorker {
    /// Tell of it.
    #[default]
    Warn,
    /// Ask it to leave at the next step boundary, and do not let it in again.
    Drain,
}

/// How workers sum their gradients up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Collective {
    /// NCCL between CUDA devices, TCP between CPUs.
    #[default]
    Auto,
    /// TCP, through host memory.
    Tcp,
}

/// Policy for a run directory that is not empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resume {
    /// Continue from the newest checkpoint that verifies; start when there is none.
    #[default]
    Auto,
    /// Refuse.
    Never,
}

/// Policy for checkpoints that cannot be saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// End the run; the checkpoints before it are kept.
    #[default]
    Stop,
    /// Warn, and try again at the next checkpoint.
    Continue,
}
