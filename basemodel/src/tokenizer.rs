//! The model's tokenizer: `tokenizer.json` as it is, or rebuilt from GGUF metadata.

mod byte_level;
mod sentencepiece;
#[cfg(test)]
mod tests;
mod vocabulary;

use crate::gguf::Metadata;
use crate::{Error, files};
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::Tokenizer;
use vocabulary::Vocabulary;

/// Loads a `tokenizer.json`.
pub(crate) fn from_file(path: &Path) -> Result<Tokenizer, Error> {
    let missing = || Error::tokenizer(path, "there is no such file (a fast tokenizer, tokenizer.json, is wanted)");
    let bytes = files::read(path, files::TOKENIZER_LIMIT)?.ok_or_else(missing)?;
    build(&bytes, path)
}

/// Rebuilds the tokenizer that a GGUF file was converted from.
pub(crate) fn from_gguf(metadata: &Metadata) -> Result<Tokenizer, Error> {
    let file = metadata.file();
    let vocabulary = Vocabulary::read(metadata)?;
    let description = match metadata.text("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level::describe(metadata, &vocabulary)?,
        Some("llama") => sentencepiece::describe(metadata, &vocabulary)?,
        Some(other) => {
            return Err(Error::unsupported(file.display().to_string(), format!("tokenizer.ggml.model {other}")));
        }
        None => return Err(Error::tokenizer(file, "metadata key tokenizer.ggml.model is missing")),
    };
    build(description.to_string().as_bytes(), file)
}

fn build(bytes: &[u8], file: &Path) -> Result<Tokenizer, Error> {
    let wrong = |what: String| Error::tokenizer(file, what);
    // The library panics where a part of the description is not JSON or not of the type it expects.
    serde_json::from_slice::<Value>(bytes).map_err(|e| wrong(format!("is not JSON: {e}")))?;
    match std::panic::catch_unwind(|| Tokenizer::from_bytes(bytes)) {
        Ok(built) => built.map_err(|e| wrong(format!("cannot be built: {e}"))),
        Err(_) => Err(wrong("cannot be built: a part of it is malformed".into())),
    }
}

/// The parts of a `tokenizer.json` in which the kinds differ.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// Whether sequences begin with the begin token where the metadata does not say.
    begins: bool,
}

/// Assembles a `tokenizer.json`.
fn describe(metadata: &Metadata, vocabulary: &Vocabulary<'_>, parts: Parts) -> Result<Value, Error> {
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": template(metadata, vocabulary, parts.begins)?,
        "decoder": parts.decoder,
        "model": parts.model,
    }))
}

/// The post-processor that frames a sequence with begin and end tokens, where the metadata asks for them.
fn template(metadata: &Metadata, vocabulary: &Vocabulary<'_>, begins: bool) -> Result<Value, Error> {
    let begin = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(begins);
    let end = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    if !begin && !end {
        return Ok(Value::Null);
    }
    let (mut single, mut pair, mut special) = (Vec::new(), Vec::new(), serde_json::Map::new());
    let mut frame = |wanted: bool, key: &str| -> Result<Option<String>, Error> {
        if !wanted {
            return Ok(None);
        }
        let missing = || Error::tokenizer(metadata.file(), format!("metadata key {key} is missing"));
        let id = metadata.id(key)?.ok_or_else(missing)?;
        let text = vocabulary.text(id)?.to_owned();
        special.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
        Ok(Some(text))
    };
    let first = frame(begin, "tokenizer.ggml.bos_token_id")?;
    let last = frame(end, "tokenizer.ggml.eos_token_id")?;
    for (sequence, type_id) in [("A", 0), ("B", 1)] {
        let mut framed = Vec::new();
        framed.extend(first.iter().map(|text| json!({"SpecialToken": {"id": text, "type_id": type_id}})));
        framed.push(json!({"Sequence": {"id": sequence, "type_id": type_id}}));
        framed.extend(last.iter().map(|text| json!({"SpecialToken": {"id": text, "type_id": type_id}})));
        if type_id == 0 {
            single.clone_from(&framed);
        }
        pair.extend(framed);
    }
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}))
}
