//! A directory of golden files: a training run of PEFT's, step by step.
//!
//! ```text
//! golden.json                  config of the run; batches of token ids; loss (and gradient norm) of every step
//! adapter_init.safetensors     the adapter before the first step, under the names of PEFT's parameters
//! adapter_final.safetensors    the adapter after the last
//! step0_grads.safetensors      gradients of the first step
//! step0_logits.safetensors     logits of the first batch: `logits_<i>` of a whole sample, `logits_b<i>_last<n>` of its end
//! model/                       the base model, when it is small
//! ```

use anyhow::{Context, Result, ensure};
use ballast_proto::v1;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A run of PEFT's.
#[derive(Debug)]
pub struct Golden {
    /// Samples of every step.
    pub batches: Vec<Vec<Sample>>,
    /// Mean loss of every step.
    pub losses: Vec<f64>,
    /// How it was trained.
    pub training: Training,
    /// The adapter before the first step.
    pub initial: Tensors,
    /// The adapter after the last step.
    pub last: Tensors,
    /// Gradients of the first step.
    pub gradients: Tensors,
    /// Logits of the first batch.
    pub logits: Tensors,
}

/// One training row: the loss bears on what follows the prompt.
#[derive(Clone, Debug, Deserialize)]
pub struct Sample {
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Prompt and answer.
    pub ids: Vec<u32>,
}

/// Hyper-parameters, under the names they have in `golden.json`.
#[derive(Debug, Deserialize)]
pub struct Training {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub wd: f64,
    /// Decay of the moments.
    pub betas: [f64; 2],
    /// Epsilon.
    pub eps: f64,
    /// Largest gradient norm.
    pub clip: Option<f64>,
    /// Course of the learning rate.
    pub schedule: String,
    /// Factor on the low-rank path.
    pub scaling: f64,
}

/// A tensor of f32.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// Tensors by the names they have in a saved adapter (without PEFT's `.default`).
pub type Tensors = BTreeMap<String, Tensor>;

#[derive(Deserialize)]
struct File {
    config: Training,
    batches: Vec<Vec<Sample>>,
    losses: Vec<f64>,
}

impl Golden {
    /// Reads a directory.
    ///
    /// # Errors
    /// When a file is missing or does not have this layout.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("golden.json");
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        let file: File = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
        ensure!(
            file.config.schedule == "constant",
            "{}: schedule {} is not constant",
            path.display(),
            file.config.schedule
        );
        ensure!(
            !file.batches.is_empty() && file.batches.len() == file.losses.len(),
            "{}: {} batches and {} losses",
            path.display(),
            file.batches.len(),
            file.losses.len()
        );
        let tensors = |name: &str| read_tensors(&directory.join(name));
        Ok(Self {
            batches: file.batches,
            losses: file.losses,
            training: file.config,
            initial: tensors("adapter_init.safetensors")?,
            last: tensors("adapter_final.safetensors")?,
            gradients: tensors("step0_grads.safetensors")?,
            logits: tensors("step0_logits.safetensors")?,
        })
    }

    /// The run as a coordinator would describe it: rank and target modules from shapes and names of the adapter's tensors.
    ///
    /// # Errors
    /// When the adapter's tensors are not LoRA's.
    pub fn run_spec(&self) -> Result<v1::RunSpec> {
        let (_, a) =
            self.initial.iter().find(|(name, _)| name.contains(".lora_A.")).context("no lora_A in the adapter")?;
        let rank = u32::try_from(a.shape[0])?;
        let modules: BTreeSet<&str> = self.initial.keys().filter_map(|name| module_of(name)).collect();
        let Training { lr, wd, betas, eps, clip, scaling, .. } = &self.training;
        Ok(v1::RunSpec {
            lora: Some(v1::Lora {
                rank,
                alpha: scaling * f64::from(rank),
                scaling: *scaling,
                dropout: 0.0,
                target_modules: modules.into_iter().map(String::from).collect(),
            }),
            optimizer: Some(v1::Optimizer {
                learning_rate: *lr,
                beta1: betas[0],
                beta2: betas[1],
                epsilon: *eps,
                weight_decay: *wd,
                clip_norm: clip.unwrap_or(0.0),
            }),
            schedule: Some(v1::Schedule { kind: v1::schedule::Kind::Constant as i32, warmup_steps: 0 }),
            total_steps: self.batches.len() as u64,
            reduction: v1::Reduction::Exact as i32,
            ..v1::RunSpec::default()
        })
    }
}

/// `q_proj` of `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
fn module_of(name: &str) -> Option<&str> {
    let (path, _) = name.split_once(".lora_")?;
    path.rsplit('.').next()
}

fn read_tensors(path: &Path) -> Result<Tensors> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
    let tensor = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        ensure!(view.dtype() == Dtype::F32, "{}: {name} is {:?}, not f32", path.display(), view.dtype());
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok((name.replace(".default.", "."), Tensor { shape: view.shape().to_vec(), values }))
    };
    file.iter().map(tensor).collect()
}
