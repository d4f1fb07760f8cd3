//! Times the preparation of a run file's rows beside the tokenizer library's own batch encoding of the same texts.
//!
//!     prepare_bench RUN.toml
//!
//! Prints `{"rows": ..., "tokens": ..., "ballast_seconds": ..., "tokenizers_seconds": ...}`. Both use rayon's threads
//! (`RAYON_NUM_THREADS`). Nothing comes from a cache. Opening the model and its tokenizer is timed for neither.

use anyhow::{Context, Result, anyhow};
use ballast_basemodel::ModelSource;
use ballast_coordinator::{config, data};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).context("usage: prepare_bench RUN.toml")?;
    let cache = tempfile::tempdir()?;
    let cache = ("data.cache_dir".to_owned(), cache.path().to_string_lossy().into_owned());
    let run = config::load(&path, &[cache], &config::environment())?.run;
    let model = ModelSource::parse(&run.model.source, run.model.revision.as_deref())?.fetch()?;

    let text = data::ModelText::of(&model)?;
    let began = Instant::now();
    let prepared = data::prepare_with(&run, &text, &|_| ())?;
    let ballast_seconds = began.elapsed().as_secs_f64();

    let tokenizer = model.tokenizer()?;
    let texts: Vec<String> = prepared
        .samples
        .iter()
        .map(|sample| tokenizer.decode(&sample.ids, false).map_err(|error| anyhow!(error)))
        .collect::<Result<_>>()?;
    let rows = texts.len();
    let began = Instant::now();
    let encodings = tokenizer.encode_batch(texts, false).map_err(|error| anyhow!(error))?;
    let tokenizers_seconds = began.elapsed().as_secs_f64();

    let tokens: usize = encodings.iter().map(|encoding| encoding.get_ids().len()).sum();
    println!(
        "{}",
        json!({
            "rows": rows,
            "tokens": tokens,
            "ballast_seconds": ballast_seconds,
            "tokenizers_seconds": tokenizers_seconds,
        })
    );
    Ok(())
}
