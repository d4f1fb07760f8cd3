//! Writes what a run file trains, for a peer that is to train exactly the same.
//!
//!     dump_plan RUN.toml DIR
//!
//! ```text
//! DIR/run.json       the run file with every default filled in
//! DIR/steps.jsonl    a line an optimizer step, the list of its samples: {"ids": [...], "loss": [[start, end], ...]}
//! DIR/adapter/       the adapter before the first step, a PEFT directory
//! ```

use anyhow::{Context, Result, ensure};
use ballast_coordinator::config;
use ballast_coordinator::data::Sample;
use ballast_e2e::planned::Planned;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    ensure!(arguments.len() == 2, "usage: dump_plan RUN.toml DIR");
    let (run_file, directory) = (&arguments[0], &arguments[1]);
    let planned = Planned::of(config::load(run_file, &[], &config::environment())?.run)?;
    planned.write_initial_adapter(&directory.join("adapter"))?;
    let steps = planned.steps().map(|step| planned.samples(&step).map(sample).collect::<Value>());
    let steps: String = steps.map(|samples| format!("{samples}\n")).collect();
    write(&directory.join("steps.jsonl"), &steps)?;
    write(&directory.join("run.json"), &serde_json::to_string_pretty(planned.run())?)
}

fn sample(sample: &Sample) -> Value {
    let loss: Vec<[u32; 2]> = sample.loss.iter().map(|range| [range.start, range.end]).collect();
    json!({ "ids": sample.ids, "loss": loss })
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}
