//! The prepared set: samples, what they were made from, and how they can be looked at.

use super::cache;
use super::error::DataError;
use super::tokenize::Sample;
use crate::config::LookAhead;
use crate::json;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// File of the prepared rows in the directory that [`PreparedSet::write_rows`] fills.
pub const ROWS_FILE: &str = "rows.jsonl";
/// File of the manifest there.
pub const MANIFEST_FILE: &str = "manifest.json";
/// `kind` of every manifest.
pub const MANIFEST_KIND: &str = "ballast prepared set";

/// All that a run trains and measures on.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedSet {
    /// To train on.
    pub samples: Vec<Sample>,
    /// To score, never rewritten.
    pub heldout: Vec<Sample>,
    /// The first held-out prompts, to be answered and looked at.
    pub heldout_prompts: Vec<Probe>,
    /// To be answered and searched for refusals, never rewritten.
    pub probes: Vec<Probe>,
    /// How the samples came to be.
    pub manifest: Manifest,
    /// Counts.
    pub stats: Stats,
    /// What a person should know before training.
    pub warnings: Vec<String>,
    /// SHA-256 (hex) of `samples`: the identity of what is trained.
    pub sha256: String,
    /// The cache file that holds the prepared rows as text.
    pub(super) cache_file: PathBuf,
}

/// A prompt to be answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The last user turn, as in the file.
    pub text: String,
    /// The rendered prompt.
    pub ids: Vec<u32>,
}

/// How a prepared set was made: enough to tell whether another one is the same, and to refuse a second rewriting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`MANIFEST_KIND`].
    pub kind: String,
    /// Version of the preparation; other versions make other tokens.
    pub format_version: u32,
    /// SHA-256 of all that shaped the set.
    pub key: String,
    /// The rewriting: mode, tokens, prefix, connector, ...
    pub lookahead: LookAhead,
    /// SHA-256 of the tokenizer.
    pub tokenizer_sha256: String,
    /// SHA-256 of the chat template.
    pub template_sha256: String,
    /// SHA-256 of the samples.
    pub samples_sha256: String,
    /// Counts.
    pub stats: Stats,
}

/// Counts of a preparation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Rows read.
    pub rows: u64,
    /// Malformed rows left out.
    pub bad_rows: u64,
    /// Samples made.
    pub samples: u64,
    /// Tokens of all samples.
    pub tokens: u64,
    /// Tokens that bear loss.
    pub loss_tokens: u64,
    /// Tokens that LookAhead added: connectors, previews and prefixes, each tokenized by itself.
    pub preview_tokens: u64,
    /// Samples whose end was cut off.
    pub truncated: u64,
    /// Samples left out because cutting would have left no loss.
    pub truncated_away: u64,
    /// Samples left out because they were too long.
    pub skipped: u64,
    /// Rows with an empty answer to learn.
    pub empty_answers: u64,
    /// Rows that got a preview.
    pub rewritten: u64,
    /// Rows with an answer shorter than `lookahead.tokens`.
    pub short_answers: u64,
    /// Rows with a preview that is the whole answer.
    pub whole_previews: u64,
    /// Rows without a preview, because they end on a user turn or no user turn precedes the answer.
    pub passed_through: u64,
    /// Tokens of the shortest sample.
    pub min_tokens: u64,
    /// Tokens of the longest sample.
    pub max_tokens: u64,
    /// Mean tokens of a sample.
    pub mean_tokens: f64,
}

/// A stretch of a sample as a person reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The text of its tokens, special ones included.
    pub text: String,
    /// Whether its tokens bear loss.
    pub loss: bool,
}

impl PreparedSet {
    /// Tokens of every sample, for the plan.
    #[must_use]
    pub fn lengths(&self) -> Vec<u32> {
        self.samples.iter().map(|s| u32::try_from(s.ids.len()).unwrap_or(u32::MAX)).collect()
    }

    /// Writes the prepared rows, one line for each sample and in the shape of the file they come from, as
    /// [`ROWS_FILE`], and then the manifest as [`MANIFEST_FILE`].
    ///
    /// # Errors
    /// [`DataError::Cache`] naming the file.
    pub fn write_rows(&self, directory: &Path) -> Result<(), DataError> {
        let rows = cache::read_rows(&self.cache_file)?;
        std::fs::create_dir_all(directory).map_err(|e| DataError::cache(directory, &e))?;
        cache::write_whole(&directory.join(ROWS_FILE), &rows)?;
        cache::write_whole(&directory.join(MANIFEST_FILE), &json::file(&self.manifest))
    }

    /// A sample as text, with the stretches that bear loss marked; `None` when there is no such sample.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer cannot decode.
    pub fn spans(&self, sample: usize, tokenizer: &Tokenizer) -> Result<Option<Vec<Span>>, DataError> {
        let Some(sample) = self.samples.get(sample) else { return Ok(None) };
        let decode = |from: usize, to: usize, loss| {
            let text = tokenizer.decode(&sample.ids[from..to], false);
            text.map(|text| Span { text, loss }).map_err(|e| DataError::Tokenizer(format!("cannot decode: {e}")))
        };
        let mut spans = Vec::new();
        let mut done = 0;
        for range in &sample.loss {
            let (start, end) = (range.start as usize, range.end as usize);
            spans.push(decode(done, start, false)?);
            spans.push(decode(start, end, true)?);
            done = end;
        }
        spans.push(decode(done, sample.ids.len(), false)?);
        spans.retain(|span| !span.text.is_empty());
        Ok(Some(spans))
    }
}

/// SHA-256 (hex) over lengths, ids and loss ranges, little-endian.
#[must_use]
pub(super) fn samples_sha256(samples: &[Sample]) -> String {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for sample in samples {
        bytes.clear();
        bytes.extend((sample.ids.len() as u64).to_le_bytes());
        bytes.extend(sample.ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend((sample.loss.len() as u64).to_le_bytes());
        bytes.extend(sample.loss.iter().flat_map(|range| [range.start, range.end]).flat_map(u32::to_le_bytes));
        hash.update(&bytes);
    }
    hex::encode(hash.finalize())
}
