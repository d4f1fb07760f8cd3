//! Prints the samples that a run file trains, as token ids, for a peer that is to train the same.
//!
//!     dump_samples RUN.toml
//!
//! One JSON object a line, in the order of the rows: `{"ids": [...], "loss": [[start, end], ...]}`.

use anyhow::{Context, Result};
use ballast_basemodel::ModelSource;
use ballast_coordinator::{config, data};
use serde_json::json;
use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).context("usage: dump_samples RUN.toml")?;
    let run = config::load(&path, &[], &config::environment())?.run;
    let model = ModelSource::parse(&run.model.source, run.model.revision.as_deref())?.fetch()?;
    let prepared = data::prepare(&run, &model, &|_| ())?;
    let mut out = BufWriter::new(stdout().lock());
    for sample in &prepared.samples {
        let loss: Vec<[u32; 2]> = sample.loss.iter().map(|range| [range.start, range.end]).collect();
        writeln!(out, "{}", json!({ "ids": sample.ids, "loss": loss }))?;
    }
    Ok(out.flush()?)
}
