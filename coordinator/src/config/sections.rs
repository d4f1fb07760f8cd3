//! The run file: one struct per section. Field docs are the reference documentation of the keys
//! (`docs/configuration.md` is generated from them and from [`super::keys`]).

use super::words::*;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A whole run file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunFile {
    /// Name, directory and seed of the run.
    pub run: Run,
    /// The base model.
    pub model: Model,
    /// The adapter.
    pub lora: Lora,
    /// Training rows and how they become tokens.
    pub data: Data,
    /// LookAhead rewriting of training rows (2503.19041).
    pub lookahead: LookAhead,
    /// Batches and the optimizer.
    pub train: Train,
    /// What is measured at the end.
    pub eval: Eval,
    /// Workers, addresses, timeouts.
    pub cluster: Cluster,
    /// Certificates and tokens.
    pub security: Security,
    /// When the state is made durable.
    pub checkpoint: Checkpoint,
    /// What a person sees.
    pub observe: Observe,
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Name of the run: letters, digits, `-`, `_` and `.`; the run file's stem when not given.
    pub name: String,
    /// Directory for all that the run writes; `runs/<name>` under the working directory when not given.
    pub dir: PathBuf,
    /// Seed of everything random: order of samples, adapter initialization, dropout.
    pub seed: u64,
}

impl Default for Run {
    fn default() -> Self {
        Self { name: String::new(), dir: PathBuf::new(), seed: 42 }
    }
}

/// `[model]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// The base model: a directory (config.json and safetensors), a GGUF file, or `hf:org/name`. Required.
    pub source: String,
    /// Branch, tag or commit of a hub model; `main` when not given.
    pub revision: Option<String>,
    /// Type in which frozen weights are stored, and on CUDA devices activations too. All else is f32 either way, and so is
    /// arithmetic.
    pub dtype: Dtype,
}

/// `[lora]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank of every adapter.
    pub rank: u32,
    /// The low-rank path is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Scale by `alpha / sqrt(rank)` instead (rank-stabilized LoRA, 2312.03732).
    pub rslora: bool,
    /// Share of the path's input channels set to zero in training.
    pub dropout: f64,
    /// Module names (`["q_proj", "v_proj"]`), or `all-linear`.
    pub target_modules: TargetModules,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            rslora: false,
            dropout: 0.0,
            target_modules: TargetModules::Word("all-linear".into()),
        }
    }
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Training files: JSON or JSONL, also `.gz` and `.zst`, or Parquet; a path or a list of paths, relative to the run file.
    /// Required.
    pub train: Paths,
    /// Shape of a row; `auto` looks at the first row.
    pub format: RowFormat,
    /// With `format = "fields"`: the field that holds the prompt.
    pub prompt_field: Option<String>,
    /// With `format = "fields"`: the field that holds the answer.
    pub answer_field: Option<String>,
    /// A system prompt put before rows that have none.
    pub system: Option<String>,
    /// `model` for the model's own chat template, a built-in's name, or the path of a Jinja file.
    pub template: String,
    /// Which assistant turns of a conversation bear loss.
    pub train_turns: Turns,
    /// What to do with a malformed row.
    pub on_bad_row: OnBadRow,
    /// Longest sample, in tokens; the model's own limit when not given.
    pub max_tokens: Option<u32>,
    /// What to do with a longer one.
    pub on_too_long: OnTooLong,
    /// Use only the first rows, at most this many.
    pub limit: Option<usize>,
    /// Directory of the cache of prepared sets; `$XDG_CACHE_HOME/ballast/prepared` (or `~/.cache/...`) when not given.
    pub cache_dir: Option<PathBuf>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: Paths::default(),
            format: RowFormat::Auto,
            prompt_field: None,
            answer_field: None,
            system: None,
            template: "model".into(),
            train_turns: Turns::Last,
            on_bad_row: OnBadRow::Fail,
            max_tokens: None,
            on_too_long: OnTooLong::Fail,
            limit: None,
            cache_dir: None,
        }
    }
}

/// `[lookahead]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LookAhead {
    /// `virtual` previews a fixed prefix, `real` the answer's first tokens, `off` rewrites nothing.
    pub mode: LookAheadMode,
    /// Tokens previewed in real mode (`m`); 0 is `off`.
    pub tokens: u32,
    /// The prefix of virtual mode (`P`).
    pub prefix: String,
    /// Text between instruction and preview (`C`).
    pub connector: String,
    /// Which user turns get a preview: of the last answer, or of every answer that bears loss.
    pub turns: Turns,
    /// `text` concatenates strings as the authors do; `token` splices the answer's own ids.
    pub preview_level: PreviewLevel,
    /// What to do in real mode with an answer shorter than `tokens`.
    pub short_answer: ShortAnswer,
    /// Go on although the preview covers every whole answer.
    pub force: bool,
}

impl Default for LookAhead {
    fn default() -> Self {
        Self {
            mode: LookAheadMode::Virtual,
            tokens: 6,
            prefix: "Let's solve this problem. ".into(),
            connector: " The answer begins with: ".into(),
            turns: Turns::Last,
            preview_level: PreviewLevel::Text,
            short_answer: ShortAnswer::Full,
            force: false,
        }
    }
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Times every sample is trained.
    pub epochs: u32,
    /// Stop after this many optimizer steps, even within an epoch.
    pub max_steps: Option<u64>,
    /// Samples of one optimizer step, over all workers.
    pub global_batch: u32,
    /// Tokens of one micro-batch, at most (a longer sample gets one of its own).
    pub micro_batch_tokens: u32,
    /// Keep only each layer's input for the backward pass and compute the layer again there: less memory, one more forward
    /// pass, the same bits.
    pub activation_checkpointing: bool,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Course of the learning rate after warm-up.
    pub schedule: Schedule,
    /// Steps over which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Largest global gradient norm; 0 switches clipping off.
    pub clip_norm: f64,
    /// How gradients are summed over micro-batches and workers: `exact` gives the same bits for any number of workers,
    /// `fast` sums f32, `fast-bf16` rounds these sums to bf16 to send them (over NCCL; over TCP they travel as f32).
    pub reduction: Reduction,
    /// What to do when the loss or the gradient of a micro-batch is NaN or infinite: `stop` the run, or `skip` the step, which then
    /// updates nothing; its samples count as passed, and the ledger says so.
    pub on_nonfinite: OnNonFinite,
    /// With `on_nonfinite = "skip"`: so many skipped steps in succession end the run after all.
    pub max_skipped: u32,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 1,
            max_steps: None,
            global_batch: 16,
            micro_batch_tokens: 1024,
            activation_checkpointing: false,
            learning_rate: 2e-4,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: 1.0,
            reduction: Reduction::Exact,
            on_nonfinite: OnNonFinite::Stop,
            max_skipped: 8,
        }
    }
}

/// `[eval]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Held-out rows (never rewritten), in the shape of the training rows: negative log-likelihood and drift.
    pub heldout: Option<PathBuf>,
    /// Use only the first held-out rows, at most this many.
    pub heldout_limit: Option<usize>,
    /// Answer positions at which KL(tuned || base) is measured.
    pub kl_positions: u32,
    /// Probe prompts: rows with a `prompt` (or messages); both models answer, refusals are counted by keyword.
    pub probes: Option<PathBuf>,
    /// Held-out prompts answered by both models, to be looked at.
    pub samples: usize,
    /// Tokens of one generated answer, at most.
    pub max_new_tokens: u32,
}

impl Default for Eval {
    fn default() -> Self {
        Self { heldout: None, heldout_limit: None, kl_positions: 8, probes: None, samples: 1, max_new_tokens: 128 }
    }
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Workers that train, if so many can be had; the run starts when so many are ready.
    pub workers: u32,
    /// Fewest workers that train: below, the run waits for more.
    pub min_workers: u32,
    /// How long a start, or a start after the loss of all workers, waits for `workers` once `min_workers` are ready, in
    /// milliseconds.
    pub gather_ms: u64,
    /// What a worker computes on that is not told with `--device`: `cpu`, or `cuda` for the device of its number on its
    /// machine.
    pub device: Device,
    /// Compute threads of each worker; 0 shares the machine's cores among local workers.
    pub threads: u32,
    /// Address the coordinator listens on. Port 0 takes a free one (`ballast train` only).
    pub bind: String,
    /// Let the coordinator listen beyond loopback although TLS or tokens are not set up (also `--insecure`).
    pub insecure: bool,
    /// Steps of data streamed ahead of training.
    pub prefetch_steps: u32,
    /// How workers sum their gradients up: `auto` is NCCL between CUDA devices and TCP between CPUs.
    pub collective: Collective,
    /// What to do with a worker that all others wait for: `warn` of it, or `drain` it, which asks it to leave at a step boundary, while
    /// `min_workers` stay, and does not let it in again.
    pub on_slow_worker: OnSlowWorker,
    /// A worker is slow that takes more than this many times the median seconds a token of the others ...
    pub slow_factor: f64,
    /// ... in three quarters of so many steps in which it had something to do.
    pub slow_steps: u32,
    /// The timeout ladder, in milliseconds, rising: a worker's heartbeats come this often ...
    pub heartbeat_ms: u64,
    /// ... a worker silent for this long is lost ...
    pub lease_ms: u64,
    /// ... a worker whose computation stands still for this long is hung ...
    pub progress_ms: u64,
    /// ... a collective that takes this long is broken ...
    pub collective_ms: u64,
    /// ... and a worker not ready this long after joining has failed to load.
    pub load_ms: u64,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            workers: 2,
            min_workers: 1,
            gather_ms: 60_000,
            device: Device::Cpu,
            threads: 0,
            bind: "127.0.0.1:7070".into(),
            insecure: false,
            prefetch_steps: 2,
            collective: Collective::Auto,
            on_slow_worker: OnSlowWorker::Warn,
            slow_factor: 3.0,
            slow_steps: 20,
            heartbeat_ms: 500,
            lease_ms: 5_000,
            progress_ms: 60_000,
            collective_ms: 120_000,
            load_ms: 600_000,
        }
    }
}

/// `[security]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Security {
    /// The coordinator's certificate (PEM), followed by what signed it; workers then say `https://` and `--ca`. No TLS when
    /// not given.
    pub certificate: Option<PathBuf>,
    /// The private key to it (PEM), readable by nobody else.
    pub private_key: Option<PathBuf>,
    /// Authorities (PEM): every client must present a certificate that one of them signed (mutual TLS).
    pub client_ca: Option<PathBuf>,
    /// Tokens of workers, operators and observers, one `ROLE TOKEN` a line, readable by nobody else; without it everyone may
    /// do everything.
    pub token_file: Option<PathBuf>,
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Steps between checkpoints; 0 keeps only the one at the end.
    pub every: u64,
    /// Checkpoints kept, newest first.
    pub keep: u32,
    /// What to do when the run directory already holds a run.
    pub resume: Resume,
    /// Where checkpoints, final adapter and `run.json` are kept: `s3://bucket/prefix`, `gs://bucket/prefix`,
    /// `az://container/prefix` or `file:///directory`, one place for each run; the run directory when empty. Credentials come
    /// from the environment. Ledger, metrics and report stay in the run directory.
    pub store: String,
    /// What to do when a checkpoint cannot be saved: `stop` the run, or `continue` with a warning and try again at the next one;
    /// the last step's must be saved either way.
    pub on_failure: OnFailure,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every: 50, keep: 3, resume: Resume::Auto, store: String::new(), on_failure: OnFailure::Stop }
    }
}

/// `[observe]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Observe {
    /// Steps between progress lines when the output is not a terminal.
    pub log_every: u64,
}

impl Default for Observe {
    fn default() -> Self {
        Self { log_every: 1 }
    }
}
