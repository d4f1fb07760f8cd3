//! `make parity GOLDEN=DIR [DTYPE=bf16]`: trains what PEFT trained and says how far apart the two are, one JSON object a line.
//!
//! In bf16 it is the losses that are compared: each may be no further from PEFT's in f32 than that of torch's autocast
//! (DIR/bf16-losses.json) and a little. Exit code 1 when a difference is larger than accepted.

use anyhow::{Context, Result, bail, ensure};
use ballast_basemodel::ModelSource;
use ballast_e2e::golden::Golden;
use ballast_e2e::parity::compare;
use ballast_kernels::Storage;
use clap::{Parser, ValueEnum};
use serde::Deserialize;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where scripts/fetch-demo-model.sh puts the demo's base model.
const DEMO_MODEL: &str = "examples/models/SmolLM2-135M-Instruct.Q4_1.gguf";

#[derive(Parser)]
struct Arguments {
    /// Directory of golden files.
    golden: PathBuf,
    /// Base model; DIR/model when that exists, else the demo's.
    #[arg(long)]
    model: Option<String>,
    /// Compute threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Type of the frozen weights.
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

/// Nats a token that a loss in bf16 may be further from f32 than that of torch's autocast.
const BEYOND_AUTOCAST: f64 = 0.002;

/// What DIR/bf16-losses.json holds: losses of PEFT on the same batches, step by step.
#[derive(Deserialize)]
struct TorchLosses {
    f32: Vec<f64>,
    #[serde(rename = "bf16-autocast")]
    autocast: Vec<f64>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let golden = Golden::read(&arguments.golden)?;
    let source = model_source(&arguments)?;
    let model = ModelSource::parse(&source, None)?.fetch()?;
    let weights = if arguments.dtype == Dtype::Bf16 { Storage::Bf16 } else { Storage::F32 };
    let parity = compare(&golden, &model, arguments.threads, weights)?;
    if arguments.dtype == Dtype::Bf16 {
        return beside_autocast(&arguments.golden, &parity.losses);
    }

    for (step, (ballast, peer)) in (1..).zip(&parity.losses) {
        println!(
            "{}",
            json!({ "measure": format!("loss of step {step}"), "ballast": ballast, "peer": peer, "ratio": ballast / peer })
        );
    }
    for difference in &parity.differences {
        println!(
            "{}",
            json!({
                "worst": difference.of,
                "relative_difference": difference.value,
                "tolerance": difference.tolerance,
                "accepted": difference.accepted(),
            })
        );
    }
    println!("{}", json!({ "gradients_zero_on_both_sides": parity.zero_gradients }));
    Ok(if parity.differences.iter().all(|d| d.accepted()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Losses in bf16 beside those of torch's autocast, a line a step.
fn beside_autocast(golden: &Path, losses: &[(f64, f64)]) -> Result<ExitCode> {
    let path = golden.join("bf16-losses.json");
    let torch: TorchLosses = serde_json::from_slice(&fs::read(&path).with_context(|| path.display().to_string())?)?;
    ensure!(
        [torch.f32.len(), torch.autocast.len()] == [losses.len(); 2],
        "{}: other steps than golden.json",
        path.display()
    );
    let mut accepted = true;
    for (step, ((ours, _), (f32, autocast))) in (1..).zip(losses.iter().zip(torch.f32.iter().zip(&torch.autocast))) {
        let (our_distance, torch_distance) = ((ours - f32).abs(), (autocast - f32).abs());
        let fits = our_distance <= torch_distance + BEYOND_AUTOCAST;
        accepted &= fits;
        println!(
            "{}",
            json!({ "measure": format!("bf16, distance from f32 of the loss of step {step}, nats"), "ballast": our_distance,
                    "column": "torch autocast", "peer": torch_distance, "accepted": fits })
        );
    }
    Ok(if accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn model_source(arguments: &Arguments) -> Result<String> {
    let own = arguments.golden.join("model");
    match &arguments.model {
        Some(source) => Ok(source.clone()),
        None if own.is_dir() => Ok(own.to_string_lossy().into_owned()),
        None if PathBuf::from(DEMO_MODEL).exists() => Ok(DEMO_MODEL.into()),
        None => bail!(
            "{} has no model and {DEMO_MODEL} is not there: run scripts/fetch-demo-model.sh, or name one with --model",
            arguments.golden.display()
        ),
    }
}
