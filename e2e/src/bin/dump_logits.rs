//! Writes what ballast's decoder computes with an adapter, for `scripts/check_adapter_in_peft.py` to compare with peft.
//!
//!     dump_logits --model SOURCE --adapter DIR --prompts ROWS.jsonl --field question --limit 16 --out FILE.safetensors
//!
//! For each prompt the file holds `ids_<i>` (i64, `[tokens]`) and `logits_<i>` (f32, `[last positions, vocabulary]`).

use anyhow::{Context, Result, ensure};
use ballast_basemodel::{BaseModel, ModelSource};
use ballast_kernels::cpu::CpuBackend;
use ballast_kernels::{Backend, PackedLayout};
use ballast_proto::v1;
use ballast_worker::lora::{Adapter, LoraLayout};
use ballast_worker::model::{Batch, Decoder, Pass, Rows};
use ballast_worker::progress::Progress;
use clap::Parser;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Positions at the end of each prompt whose logits are written.
const POSITIONS: usize = 8;

#[derive(Parser)]
struct Arguments {
    /// Base model: a directory, a GGUF file, or hf:org/name.
    #[arg(long)]
    model: String,
    /// Directory with adapter_config.json and adapter_model.safetensors.
    #[arg(long)]
    adapter: PathBuf,
    /// JSONL file of prompts.
    #[arg(long)]
    prompts: PathBuf,
    /// Field of a row that holds the prompt.
    #[arg(long)]
    field: String,
    /// Use only the first rows.
    #[arg(long)]
    limit: usize,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let model = ModelSource::parse(&arguments.model, None)?.fetch()?;
    let backend = Arc::new(CpuBackend::new(0)?);
    let decoder = Decoder::load(&backend, &model)?;
    let (layout, parameters) = read_adapter(&arguments.adapter, &model)?;
    let parameters = backend.upload_reals(&parameters)?;
    let adapter = Adapter { layout: &layout, parameters: &parameters, dropout: None };

    let mut tensors = Vec::new();
    for (number, ids) in prompts(&arguments, &model)?.iter().enumerate() {
        let logits = last_logits(&decoder, &adapter, ids)?;
        let rows = logits.len() / decoder.architecture().vocab_size;
        let ids: Vec<u8> = ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
        let logits_shape = vec![rows, decoder.architecture().vocab_size];
        let logits = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((format!("ids_{number}"), Dtype::I64, vec![ids.len() / 8], ids));
        tensors.push((format!("logits_{number}"), Dtype::F32, logits_shape, logits));
    }
    write(&arguments.out, &tensors)
}

/// The parts of peft's `adapter_config.json` that shape an adapter.
#[derive(Deserialize)]
struct AdapterConfig {
    r: u32,
    lora_alpha: f64,
    use_rslora: bool,
    target_modules: Vec<String>,
}

/// An adapter's layout, and its parameters in that layout.
fn read_adapter(directory: &Path, model: &BaseModel) -> Result<(LoraLayout, Vec<f32>)> {
    let path = directory.join("adapter_config.json");
    let text = fs::read(&path).with_context(|| path.display().to_string())?;
    let config: AdapterConfig = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let rank = f64::from(config.r);
    let lora = v1::Lora {
        rank: config.r,
        alpha: config.lora_alpha,
        scaling: config.lora_alpha / if config.use_rslora { rank.sqrt() } else { rank },
        dropout: 0.0,
        target_modules: config.target_modules,
    };
    let layout = LoraLayout::new(model.architecture(), &lora)?;

    let path = directory.join("adapter_model.safetensors");
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
    ensure!(file.len() == layout.tensors().len(), "{}: {} tensors", path.display(), file.len());
    let mut parameters = Vec::with_capacity(layout.parameters());
    for tensor in layout.tensors() {
        let view = file.tensor(&tensor.name).with_context(|| tensor.name.clone())?;
        ensure!(view.dtype() == Dtype::F32 && view.shape() == tensor.shape, "{} is mis-shaped", tensor.name);
        parameters.extend(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    }
    Ok((layout, parameters))
}

/// Token ids of every prompt.
fn prompts(arguments: &Arguments, model: &BaseModel) -> Result<Vec<Vec<u32>>> {
    let tokenizer = model.tokenizer()?;
    let text = fs::read_to_string(&arguments.prompts).with_context(|| arguments.prompts.display().to_string())?;
    let encode = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line)?;
        let prompt = row[&arguments.field].as_str().with_context(|| format!("no field {}", arguments.field))?;
        let encoding = tokenizer.encode(prompt, false).map_err(|error| anyhow::anyhow!(error))?;
        Ok(encoding.get_ids().to_vec())
    };
    text.lines().take(arguments.limit).map(encode).collect()
}

/// Logits of the last positions, `[positions, vocabulary]`.
fn last_logits<B: Backend>(decoder: &Decoder<B>, adapter: &Adapter<'_, B>, ids: &[u32]) -> Result<Vec<f32>> {
    let backend = &**decoder.backend();
    let length = ids.len() as u32;
    let batch = Batch::new(backend, ids, &PackedLayout::new(&[length], &[0]))?;
    let last: Vec<u32> = (length.saturating_sub(POSITIONS as u32)..length).collect();
    let rows = Rows::new(backend, &last)?;
    let progress = Progress::new();
    let hidden = decoder.hidden(&Pass { batch: &batch, adapter: Some(adapter), progress: &progress }, &rows)?;
    let mut logits = backend.reals(last.len() * decoder.architecture().vocab_size)?;
    backend.logits(&hidden, decoder.head(), &mut logits)?;
    Ok(backend.read_reals(&logits)?)
}

/// Name, type, shape and bytes of a tensor.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn write(path: &Path, tensors: &[Tensor]) -> Result<()> {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    serialize_to_file(views, None, path).with_context(|| path.display().to_string())
}
