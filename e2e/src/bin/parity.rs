//! `make parity GOLDEN=DIR`: trains what PEFT trained and says how far apart the two are, one JSON object a line.
//!
//! Exit code 1 when a difference is larger than accepted.

use anyhow::{Result, bail};
use ballast_basemodel::ModelSource;
use ballast_e2e::golden::Golden;
use ballast_e2e::parity::compare;
use clap::Parser;
use serde_json::json;
use std::path::PathBuf;
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
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let golden = Golden::read(&arguments.golden)?;
    let source = model_source(&arguments)?;
    let model = ModelSource::parse(&source, None)?.fetch()?;
    let parity = compare(&golden, &model, arguments.threads)?;

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
