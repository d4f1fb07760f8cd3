//! From a run file and a base model to a prepared set, by way of the cache.

use super::cache;
use super::codec::{FORMAT_VERSION, Header, Stored};
use super::collect::Collector;
use super::error::DataError;
use super::lookahead;
use super::pipeline::{Heldout, Pipeline};
use super::prepared::{MANIFEST_FILE, MANIFEST_KIND, Manifest, PreparedSet, Probe, ROWS_FILE, samples_sha256};
use super::source::{BadRows, Purpose, SourceSettings, read};
use super::template::{ChatTemplate, TemplateSource};
use super::tokenize::{Encoder, Sample};
use crate::config::{Data, LookAhead, LookAheadMode, OnBadRow, RowFormat, RunFile};
use ballast_basemodel::BaseModel;
use ballast_proto::Coded;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// How far a preparation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepareProgress {
    /// The set was found in the cache.
    Cached,
    /// So many training rows are done.
    Rows(u64),
}

/// What of a base model shapes samples.
pub struct ModelText {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its own chat template, if it has one.
    pub chat_template: Option<TemplateSource>,
    /// Tokens that end an answer, ascending.
    pub stop_ids: Vec<u32>,
    /// Rows of its embedding table.
    pub vocab_size: usize,
    /// Longest sequence it was made for.
    pub max_positions: usize,
}

impl ModelText {
    /// Takes it from a base model.
    ///
    /// # Errors
    /// [`DataError::Model`] when the tokenizer cannot be loaded.
    pub fn of(model: &BaseModel) -> Result<Self, DataError> {
        let failed =
            |error: ballast_basemodel::Error| DataError::Model { code: error.code(), message: error.to_string() };
        let chat_template = model.chat_template().map(|template| TemplateSource {
            name: "the base model's chat template".into(),
            source: template.source,
            bos_token: template.bos_token,
            eos_token: template.eos_token,
            tokenizer_adds_bos: false,
        });
        Ok(Self {
            tokenizer: model.tokenizer().map_err(failed)?,
            chat_template,
            stop_ids: model.stop_ids(),
            vocab_size: model.architecture().vocab_size,
            max_positions: model.architecture().max_positions,
        })
    }
}

/// Prepares all that a run trains and measures on, or takes it from the cache.
///
/// # Errors
/// Any [`DataError`]; nothing is cached then.
pub fn prepare(run: &RunFile, model: &BaseModel, progress: &dyn Fn(PrepareProgress)) -> Result<PreparedSet, DataError> {
    prepare_with(run, &ModelText::of(model)?, progress)
}

/// [`prepare`], for a tokenizer and a template from anywhere.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_with(
    run: &RunFile,
    model: &ModelText,
    progress: &dyn Fn(PrepareProgress),
) -> Result<PreparedSet, DataError> {
    refuse_prepared_rows(run)?;
    let source = choose_template(&run.data, model)?;
    refuse_endless_answers(&source)?;
    let template = ChatTemplate::compile(&source)?;
    let encoder = Encoder::new(&model.tokenizer, model.vocab_size, source.tokenizer_adds_bos, &model.stop_ids)?;
    let max_positions = model.max_positions;
    let max_tokens = run.data.max_tokens.map_or(max_positions, |most| most as usize);
    if max_tokens > max_positions {
        return Err(DataError::MaxTokens { max_tokens, max_positions });
    }
    let mut manifest = Manifest {
        kind: MANIFEST_KIND.into(),
        format_version: FORMAT_VERSION,
        key: String::new(),
        lookahead: effective(&run.lookahead),
        tokenizer_sha256: encoder.sha256().into(),
        template_sha256: template_sha256(&source),
        samples_sha256: String::new(),
        stats: Default::default(),
    };
    manifest.key = key(run, &manifest, max_tokens, model.vocab_size)?;
    let cache_file = cache::directory(&run.data)?.join(format!("{}.prepared", manifest.key));

    let mut rebuilt = None;
    match cache::load(&cache_file) {
        Ok(Some(stored)) => {
            progress(PrepareProgress::Cached);
            return Ok(loaded(stored, cache_file));
        }
        Ok(None) => {}
        Err(reason) => {
            let file = cache_file.display();
            rebuilt = Some(format!("the cached prepared set {file} is damaged ({reason}) and was made anew"));
        }
    }
    let pipeline = Pipeline::new(run, template, encoder, max_tokens)?;
    let stored = make(run, &pipeline, manifest, progress)?;
    cache::store(&cache_file, &stored)?;
    let mut set = loaded(stored, cache_file);
    set.warnings.extend(rebuilt);
    Ok(set)
}

fn loaded(stored: Stored, cache_file: PathBuf) -> PreparedSet {
    let Stored { header: Header { manifest, warnings }, samples, heldout, heldout_prompts, probes, rows: _ } = stored;
    let (stats, sha256) = (manifest.stats, manifest.samples_sha256.clone());
    PreparedSet { samples, heldout, heldout_prompts, probes, manifest, stats, warnings, sha256, cache_file }
}

fn make(
    run: &RunFile,
    pipeline: &Pipeline<'_>,
    mut manifest: Manifest,
    progress: &dyn Fn(PrepareProgress),
) -> Result<Stored, DataError> {
    let mut collector = Collector::new(run, pipeline, progress)?;
    let mut bad = BadRows::default();
    read(run.data.train.as_slice(), SourceSettings::of(&run.data), Purpose::Answers, &mut bad, &mut |row| {
        collector.add(row)
    })?;
    let training = collector.finish(bad)?;
    let mut warnings = training.warnings;

    let Scored { heldout, mut prompts, warnings: about_heldout } = match &run.eval.heldout {
        Some(file) => heldout(run, pipeline, file)?,
        None => Scored::default(),
    };
    warnings.extend(about_heldout);
    prompts.truncate(run.eval.samples);
    let probes = match &run.eval.probes {
        Some(file) => probes(run, pipeline, file)?,
        None => Vec::new(),
    };
    manifest.samples_sha256 = samples_sha256(&training.samples);
    manifest.stats = training.stats;
    let header = Header { manifest, warnings };
    Ok(Stored { header, samples: training.samples, heldout, heldout_prompts: prompts, probes, rows: training.rows })
}

/// Held-out rows, prepared.
#[derive(Default)]
struct Scored {
    heldout: Vec<Sample>,
    prompts: Vec<Probe>,
    warnings: Vec<String>,
}

fn heldout(run: &RunFile, pipeline: &Pipeline<'_>, file: &PathBuf) -> Result<Scored, DataError> {
    let settings = SourceSettings { limit: run.eval.heldout_limit, ..SourceSettings::of(&run.data) };
    let (mut bad, mut refused) = (BadRows::default(), BadRows::default());
    let mut scored = Scored::default();
    let (mut cut, mut too_long) = (0_u64, 0_u64);
    read(std::slice::from_ref(file), settings, Purpose::Answers, &mut bad, &mut |row| {
        let (sample, prompt) = match pipeline.heldout(row)? {
            Ok(Heldout::Scored(sample, prompt)) => (sample, prompt),
            Ok(Heldout::Cut(sample, prompt)) => {
                cut += 1;
                (sample, prompt)
            }
            Ok(Heldout::LeftOut) => {
                too_long += 1;
                return Ok(());
            }
            Err(error) => return refused.meet(error, run.data.on_bad_row),
        };
        scored.heldout.push(sample);
        scored.prompts.push(prompt);
        Ok(())
    })?;
    if scored.heldout.is_empty() {
        let file = file.display();
        return Err(DataError::Empty(format!("eval.heldout: no row is left to score in {file} ({too_long} too long)")));
    }
    bad.count += refused.count;
    bad.first = bad.first.or(refused.first);
    let counted = [
        (cut, "held-out samples were cut at data.max_tokens: the ends of their answers are not scored"),
        (too_long, "held-out samples are longer than data.max_tokens and are not scored"),
    ];
    scored
        .warnings
        .extend(counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    scored.warnings.extend(left_out("held-out rows", &bad));
    Ok(scored)
}

fn probes(run: &RunFile, pipeline: &Pipeline<'_>, file: &PathBuf) -> Result<Vec<Probe>, DataError> {
    // Prompts come in shapes of their own, and every one of them counts.
    let settings = SourceSettings {
        format: RowFormat::Auto,
        on_bad_row: OnBadRow::Fail,
        limit: None,
        ..SourceSettings::of(&run.data)
    };
    let mut probes = Vec::new();
    read(std::slice::from_ref(file), settings, Purpose::Prompts, &mut BadRows::default(), &mut |row| {
        probes.push(pipeline.probe(row)??);
        Ok(())
    })?;
    if probes.is_empty() {
        return Err(DataError::Empty(format!("eval.probes: there is no prompt in {}", file.display())));
    }
    Ok(probes)
}

/// The warning about malformed rows, if there were any.
pub(super) fn left_out(what: &str, bad: &BadRows) -> Option<String> {
    let first = bad.first.as_ref()?;
    Some(format!("{} malformed {what} were left out (data.on_bad_row = \"skip\"); the first: {first}", bad.count))
}

/// The settings, with `mode = "off"` where they rewrite nothing.
fn effective(settings: &LookAhead) -> LookAhead {
    let mode = if lookahead::is_on(settings) { settings.mode } else { LookAheadMode::Off };
    LookAhead { mode, ..settings.clone() }
}

/// The template that the run file names: the model's own, a built-in one, or a file.
fn choose_template(data: &Data, model: &ModelText) -> Result<TemplateSource, DataError> {
    let name = data.template.as_str();
    let built_ins = || super::template::BUILT_INS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if name == "model" {
        return model.chat_template.clone().ok_or_else(|| {
            let known = built_ins();
            DataError::Template(format!(
                "the base model brings no chat template; set data.template to one of {known}, or to the path of a Jinja file"
            ))
        });
    }
    let own = model.chat_template.as_ref();
    let eos = own.and_then(|t| t.eos_token.clone()).or_else(|| model.tokenizer.id_to_token(*model.stop_ids.first()?));
    let bos = own.and_then(|t| t.bos_token.clone());
    if let Some(source) = TemplateSource::built_in(name, bos.as_deref(), eos.as_deref()) {
        return Ok(source);
    }
    let source = std::fs::read_to_string(name).map_err(|error| {
        let known = built_ins();
        let reason = format!("{error} (data.template is `model`, one of {known}, or the path of a Jinja file)");
        DataError::unreadable(Path::new(name), reason)
    })?;
    let name = format!("the chat template {name}");
    Ok(TemplateSource { name, source, bos_token: bos, eos_token: eos, tokenizer_adds_bos: false })
}

/// Refuses a template that ends answers with a token that the base model does not name: a model that is trained on answers
/// without an end never stops.
fn refuse_endless_answers(template: &TemplateSource) -> Result<(), DataError> {
    if template.eos_token.is_some() || !template.source.contains("eos_token") {
        return Ok(());
    }
    Err(DataError::Template(format!(
        "{} ends answers with the base model's end token, and the base model names none; add eos_token_id to its config.json, or \
         choose another data.template",
        template.name
    )))
}

fn template_sha256(template: &TemplateSource) -> String {
    let shaped_by = json!([template.source, template.bos_token, template.eos_token, template.tokenizer_adds_bos]);
    hex::encode(Sha256::digest(shaped_by.to_string()))
}

/// SHA-256 of all that shapes a prepared set.
fn key(run: &RunFile, manifest: &Manifest, max_tokens: usize, vocab_size: usize) -> Result<String, DataError> {
    // Where files lie does not matter; what is in them does.
    let data = Data { train: Default::default(), cache_dir: None, template: String::new(), ..run.data.clone() };
    let optional = |file: &Option<PathBuf>| file.as_deref().map(file_sha256).transpose();
    let train = run.data.train.as_slice().iter().map(|f| file_sha256(f)).collect::<Result<Vec<_>, _>>()?;
    let shaped_by = json!({
        "format_version": FORMAT_VERSION,
        "ballast": env!("CARGO_PKG_VERSION"),
        "train": train,
        "data": data,
        "lookahead": manifest.lookahead,
        "tokenizer": manifest.tokenizer_sha256,
        "template": manifest.template_sha256,
        "max_tokens": max_tokens,
        "vocab_size": vocab_size,
        "heldout": [json!(optional(&run.eval.heldout)?), json!(run.eval.heldout_limit), json!(run.eval.samples)],
        "probes": optional(&run.eval.probes)?,
    });
    Ok(hex::encode(Sha256::digest(shaped_by.to_string())))
}

fn file_sha256(path: &Path) -> Result<String, DataError> {
    let failed = |error: std::io::Error| DataError::unreadable(path, error);
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
    let mut hash = Sha256::new();
    std::io::copy(&mut reader.by_ref(), &mut hash).map_err(failed)?;
    Ok(hex::encode(hash.finalize()))
}

/// Refuses to rewrite prepared rows: [`PreparedSet::write_rows`] leaves a manifest beside them.
fn refuse_prepared_rows(run: &RunFile) -> Result<(), DataError> {
    if !lookahead::is_on(&run.lookahead) {
        return Ok(());
    }
    for file in run.data.train.as_slice() {
        let manifest = file.with_file_name(MANIFEST_FILE);
        let Ok(text) = std::fs::read(&manifest) else { continue };
        let Ok(manifest_json) = serde_json::from_slice::<Value>(&text) else { continue };
        let ours = manifest_json["kind"] == MANIFEST_KIND && file.file_name().is_some_and(|name| name == ROWS_FILE);
        let mode = manifest_json["lookahead"]["mode"].as_str().unwrap_or("off");
        if ours && mode != "off" {
            return Err(DataError::LookAheadTwice(format!(
                "{} was already rewritten by LookAhead (mode {mode}, says {}); set lookahead.mode = \"off\" to train on it as \
                 it is, or take the original rows",
                file.display(),
                manifest.display()
            )));
        }
    }
    Ok(())
}
