//! All that follows from the run file, the base model and the prepared set before anyone joins.

use super::steps::{Shares, Step, Steps};
use crate::{
    checkpoint::{AdapterConfig, AdapterShapes, Identity, RunRecord},
    config::{self, Resolved, RunFile},
    data::{
        PreparedSet, Probe, Sample,
        plan::{CostModel, Plan, PlanSettings},
    },
    evaluation::{self, Prompt, Task},
    json,
    membership::StepTotals,
};
use ballast_basemodel::{Architecture, BaseModel, Projection};
use ballast_proto::{
    Coded, ErrorCode, Failure,
    v1::{self, RunSpec, Schedule, Sequence, Timeouts, TokenRange},
};
use std::{fmt, sync::Arc};

/// What the coordinator needs to know of the base model.
#[derive(Clone)]
pub struct ModelInfo {
    /// SHA-256 (hex) over its files.
    pub sha256: String,
    /// Its shape.
    pub architecture: Architecture,
    /// Tokens that end an answer.
    pub stop_ids: Vec<u32>,
    /// Token ids to text, without special tokens.
    pub decode: Decode,
}

/// Turns token ids into text.
pub type Decode = Arc<dyn Fn(&[u32]) -> String + Send + Sync>;

impl fmt::Debug for ModelInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelInfo").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

impl ModelInfo {
    /// What there is to know of this model.
    ///
    /// # Errors
    /// When its files or tokenizer cannot be read.
    pub fn of(model: &BaseModel) -> Result<Self, Failure> {
        let failed = |e: ballast_basemodel::Error| Failure::new(e.code(), e.to_string());
        let tokenizer = model.tokenizer().map_err(failed)?;
        Ok(Self {
            sha256: model.sha256().map_err(failed)?,
            architecture: model.architecture().clone(),
            stop_ids: model.stop_ids(),
            decode: Arc::new(move |ids| {
                tokenizer.decode(ids, true).unwrap_or_else(|e| format!("[cannot be decoded: {e}]"))
            }),
        })
    }
}

/// The prepared set, as the coordinator serves it.
#[derive(Clone, Debug, Default)]
pub struct RunData {
    /// Samples to train on; a sample's number is its position.
    pub samples: Vec<Sequence>,
    /// Samples to score.
    pub heldout: Vec<Sequence>,
    /// Prompts to answer and look at.
    pub heldout_prompts: Vec<Prompt>,
    /// Prompts to answer and search for refusals.
    pub probes: Vec<Prompt>,
    /// SHA-256 (hex) of the samples.
    pub sha256: String,
    /// What the preparation counted, for the report.
    pub stats: serde_json::Value,
    /// What a person should know before training.
    pub warnings: Vec<String>,
}

impl RunData {
    /// The prepared set in the form in which it is sent.
    #[must_use]
    pub fn of(prepared: &PreparedSet) -> Self {
        let prompt = |probe: &Probe| Prompt { text: probe.text.clone(), ids: probe.ids.clone() };
        Self {
            samples: sequences(&prepared.samples),
            heldout: sequences(&prepared.heldout),
            heldout_prompts: prepared.heldout_prompts.iter().map(prompt).collect(),
            probes: prepared.probes.iter().map(prompt).collect(),
            sha256: prepared.sha256.clone(),
            stats: json::value(&prepared.stats),
            warnings: prepared.warnings.clone(),
        }
    }
}

fn sequences(samples: &[Sample]) -> Vec<Sequence> {
    let ranges = |sample: &Sample| sample.loss.iter().map(|r| TokenRange { start: r.start, end: r.end }).collect();
    (0u64..)
        .zip(samples)
        .map(|(number, sample)| Sequence { sample: number, token_ids: sample.ids.clone(), loss: ranges(sample) })
        .collect()
}

/// What every worker of a run would be told, for who wants to know without starting it.
///
/// # Errors
/// What [`super::Coordinator::start`] refuses of a plan.
pub fn spec(resolved: &Resolved, model: ModelInfo, data: RunData) -> Result<RunSpec, Failure> {
    Ok(Blueprint::new(resolved, model, data, String::new())?.spec(0))
}

/// What a run is, fixed for its whole life.
pub(super) struct Blueprint {
    pub(super) run: RunFile,
    pub(super) model: ModelInfo,
    pub(super) data: RunData,
    steps: Steps,
    pub(super) total_steps: u64,
    /// Tokens that no micro-batch of the run exceeds.
    largest_micro_batch_tokens: u64,
    pub(super) targets: Vec<String>,
    pub(super) shapes: AdapterShapes,
    pub(super) adapter_config: AdapterConfig,
    pub(super) binary_sha256: String,
    pub(super) warnings: Vec<String>,
}

impl Blueprint {
    /// Derives everything, and refuses what cannot be trained.
    pub(super) fn new(
        resolved: &Resolved,
        model: ModelInfo,
        data: RunData,
        binary_sha256: String,
    ) -> Result<Self, Failure> {
        let run = resolved.run.clone();
        let lengths: Vec<u32> =
            data.samples.iter().map(|s| u32::try_from(s.token_ids.len()).unwrap_or(u32::MAX)).collect();
        if lengths.is_empty() {
            return Err(Failure::new(ErrorCode::DataEmpty, "no sample is left to train on"));
        }
        let settings = PlanSettings {
            epochs: run.train.epochs.into(),
            max_steps: run.train.max_steps,
            global_batch: run.train.global_batch,
            micro_batch_tokens: run.train.micro_batch_tokens,
            cost: CostModel::of(&model.architecture),
        };
        let plan = Plan::new(run.run.seed, &lengths, settings);
        let total_steps = plan.total_steps();
        resolved.check_total_steps(total_steps).map_err(|e| Failure::new(e.code(), e.to_string()))?;
        let targets: Vec<String> = run.lora.target_modules.names().into_iter().map(str::to_owned).collect();
        let projections: Vec<Projection> = targets.iter().filter_map(|name| Projection::from_name(name)).collect();
        if projections.is_empty() {
            return Err(Failure::new(ErrorCode::LoraTargets, "lora.target_modules names no module of the base model"));
        }
        let warnings = data.warnings.iter().cloned().chain(idle_workers(&run, &plan)).collect();
        Ok(Self {
            shapes: AdapterShapes::new(&model.architecture, run.lora.rank as usize, &projections),
            adapter_config: AdapterConfig {
                model_source: run.model.source.clone(),
                revision: run.model.revision.clone(),
                rank: run.lora.rank,
                alpha: run.lora.alpha,
                dropout: run.lora.dropout,
                rslora: run.lora.rslora,
                target_modules: targets.clone(),
            },
            run,
            model,
            data,
            largest_micro_batch_tokens: plan.largest_micro_batch_tokens(),
            steps: Steps::new(plan),
            total_steps,
            targets,
            binary_sha256,
            warnings,
        })
    }

    /// `run.json`, but for what only the first worker tells.
    pub(super) fn record(&self) -> RunRecord {
        RunRecord {
            format: RunRecord::FORMAT,
            name: self.run.run.name.clone(),
            total_steps: self.total_steps,
            identity: Identity::new(&self.run, &self.targets, &self.model.sha256, &self.data.sha256),
            binary_sha256: self.binary_sha256.clone(),
            numerics: None,
            settings: json::value(&self.run),
        }
    }

    /// Whether the number of steps shapes every step (through the learning rate).
    pub(super) fn steps_matter(&self) -> bool {
        self.run.train.schedule != config::Schedule::Constant
    }

    /// What every worker is told.
    pub(super) fn spec(&self, epoch: u64) -> RunSpec {
        let (lora, train) = (&self.run.lora, &self.run.train);
        let divisor = if lora.rslora { f64::from(lora.rank).sqrt() } else { f64::from(lora.rank) };
        RunSpec {
            run_id: format!("{}-{epoch}", self.run.run.name),
            run_name: self.run.run.name.clone(),
            base_model: Some(v1::BaseModel {
                source: self.run.model.source.clone(),
                revision: self.run.model.revision.clone().unwrap_or_default(),
                sha256: self.model.sha256.clone(),
            }),
            lora: Some(v1::Lora {
                rank: lora.rank,
                alpha: lora.alpha,
                scaling: lora.alpha / divisor,
                dropout: lora.dropout,
                target_modules: self.targets.clone(),
            }),
            optimizer: Some(v1::Optimizer {
                learning_rate: train.learning_rate,
                beta1: train.beta1,
                beta2: train.beta2,
                epsilon: train.epsilon,
                weight_decay: train.weight_decay,
                clip_norm: train.clip_norm,
            }),
            schedule: Some(self.schedule()),
            seed: self.run.run.seed,
            total_steps: self.total_steps,
            reduction: match train.reduction {
                config::Reduction::Exact => v1::Reduction::Exact.into(),
                config::Reduction::Fast => v1::Reduction::Fast.into(),
                config::Reduction::FastBf16 => v1::Reduction::FastBf16.into(),
            },
            threads: self.run.cluster.threads,
            timeouts: Some(self.timeouts()),
            dtype: match self.run.model.dtype {
                config::Dtype::F32 => v1::Dtype::F32.into(),
                config::Dtype::Bf16 => v1::Dtype::Bf16.into(),
            },
            device: match self.run.cluster.device {
                config::Device::Cpu => v1::Device::Cpu.into(),
                config::Device::Cuda => v1::Device::Cuda.into(),
            },
            collective: self.collective().into(),
            workers: self.run.cluster.workers,
            activation_checkpointing: train.activation_checkpointing,
            skip_non_finite: train.on_nonfinite == config::OnNonFinite::Skip,
            largest_micro_batch_tokens: self.largest_micro_batch_tokens,
        }
    }

    /// How the ranks of a generation meet.
    pub(super) fn collective(&self) -> v1::Collective {
        match self.run.cluster.collective {
            config::Collective::Auto => v1::Collective::Auto,
            config::Collective::Tcp => v1::Collective::Tcp,
        }
    }

    fn schedule(&self) -> Schedule {
        use v1::schedule::Kind;
        let kind = match self.run.train.schedule {
            config::Schedule::Constant => Kind::Constant,
            config::Schedule::Linear => Kind::Linear,
            config::Schedule::Cosine => Kind::Cosine,
        };
        Schedule { kind: kind.into(), warmup_steps: self.run.train.warmup_steps }
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        let cluster = &self.run.cluster;
        Timeouts {
            heartbeat_interval_ms: cluster.heartbeat_ms,
            lease_ms: cluster.lease_ms,
            progress_ms: cluster.progress_ms,
            collective_ms: cluster.collective_ms,
            load_ms: cluster.load_ms,
        }
    }

    pub(super) fn tasks(&self) -> Vec<Task> {
        let data = &self.data;
        evaluation::build(&self.run.eval, &data.heldout, &data.heldout_prompts, &data.probes, &self.model.stop_ids)
    }

    /// Token counts of a step, over all ranks.
    pub(super) fn totals(&self, step: u64) -> Option<StepTotals> {
        Some(self.step(step)?.totals)
    }

    /// A step of the plan; `None` outside the run.
    pub(super) fn step(&self, step: u64) -> Option<Arc<Step>> {
        self.steps.step(step, &self.data.samples)
    }

    /// How the micro-batches of a step are divided among so many ranks.
    pub(super) fn shares(&self, number: u64, step: &Step, world_size: usize) -> Option<Arc<Shares>> {
        self.steps.shares(number, step, world_size)
    }

    /// Whether a checkpoint follows a step: every `checkpoint.every` steps, and at the end.
    pub(super) fn checkpoint_after(&self, step: u64) -> bool {
        let every = self.run.checkpoint.every;
        step == self.total_steps || (every > 0 && step.is_multiple_of(every))
    }
}

/// A warning when some workers never get anything to do.
fn idle_workers(run: &RunFile, plan: &Plan) -> Option<String> {
    let useful = plan.useful_workers();
    (run.cluster.workers as usize > useful).then(|| {
        format!(
            "cluster.workers is {}, but no step has more than {useful} micro-batches: at most {useful} workers have \
             something to do; raise train.global_batch or lower train.micro_batch_tokens to use more",
            run.cluster.workers
        )
    })
}
