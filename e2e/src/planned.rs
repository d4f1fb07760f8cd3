//! What a run file trains, step by step: the coordinator's plan, before anyone joins.

use anyhow::{Context, Result};
use ballast_basemodel::{BaseModel, ModelSource};
use ballast_coordinator::checkpoint::{ADAPTER_CONFIG, ADAPTER_MODEL, AdapterConfig};
use ballast_coordinator::config::RunFile;
use ballast_coordinator::data::plan::{CostModel, Plan, PlanSettings, StepPlan};
use ballast_coordinator::data::{self, Sample};
use ballast_proto::v1;
use ballast_worker::lora::{LoraLayout, LoraTensor};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::fs;
use std::path::Path;

/// A run file with its data prepared and its steps planned.
pub struct Planned {
    run: RunFile,
    model: BaseModel,
    samples: Vec<Sample>,
    plan: Plan,
}

impl Planned {
    /// Prepares the data of a resolved run file.
    ///
    /// # Errors
    /// When the base model or the rows cannot be read, or a row cannot be trained.
    pub fn of(run: RunFile) -> Result<Self> {
        let model = ModelSource::parse(&run.model.source, run.model.revision.as_deref())?.fetch()?;
        let prepared = data::prepare(&run, &model, &|_| ())?;
        let settings = PlanSettings {
            epochs: run.train.epochs.into(),
            max_steps: run.train.max_steps,
            global_batch: run.train.global_batch,
            micro_batch_tokens: run.train.micro_batch_tokens,
            cost: CostModel::of(model.architecture()),
        };
        let plan = Plan::new(run.run.seed, &prepared.lengths(), settings);
        Ok(Self { run, model, samples: prepared.samples, plan })
    }

    /// The run file.
    #[must_use]
    pub fn run(&self) -> &RunFile {
        &self.run
    }

    /// All steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = StepPlan> {
        (1..=self.plan.total_steps()).filter_map(|step| self.plan.step(step))
    }

    /// The samples of a step, micro-batch after micro-batch.
    pub fn samples(&self, step: &StepPlan) -> impl Iterator<Item = &Sample> {
        step.micro_batches.iter().flatten().filter_map(|&sample| self.samples.get(sample as usize))
    }

    /// Writes the adapter that the run begins with as a PEFT directory.
    ///
    /// # Errors
    /// When the base model has no such modules, or a file cannot be written.
    pub fn write_initial_adapter(&self, directory: &Path) -> Result<()> {
        let lora = &self.run.lora;
        let target_modules: Vec<String> = lora.target_modules.names().into_iter().map(str::to_owned).collect();
        let config = AdapterConfig {
            model_source: self.run.model.source.clone(),
            revision: self.run.model.revision.clone(),
            rank: lora.rank,
            alpha: lora.alpha,
            dropout: lora.dropout,
            rslora: lora.rslora,
            target_modules: target_modules.clone(),
        };
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let path = directory.join(ADAPTER_CONFIG);
        fs::write(&path, config.to_json()).with_context(|| path.display().to_string())?;

        let rank = f64::from(lora.rank);
        let scaling = lora.alpha / if lora.rslora { rank.sqrt() } else { rank };
        let lora = v1::Lora { rank: lora.rank, alpha: lora.alpha, scaling, dropout: lora.dropout, target_modules };
        let layout = LoraLayout::new(self.model.architecture(), &lora)?;
        write_tensors(&layout, &layout.initial_parameters(self.run.run.seed), &directory.join(ADAPTER_MODEL))
    }
}

/// Writes parameters under their names in PEFT.
fn write_tensors(layout: &LoraLayout, parameters: &[f32], path: &Path) -> Result<()> {
    let bytes: Vec<u8> = parameters.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = |tensor: &LoraTensor| {
        let data = &bytes[4 * tensor.range.start..4 * tensor.range.end];
        Ok((tensor.name.clone(), TensorView::new(Dtype::F32, tensor.shape.to_vec(), data)?))
    };
    let views = layout.tensors().iter().map(view).collect::<Result<Vec<_>>>()?;
    serialize_to_file(views, None, path).with_context(|| path.display().to_string())
}
