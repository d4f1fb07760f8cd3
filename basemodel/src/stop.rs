//! The tokens that end an answer.

use crate::chat_template::token_text;
use crate::gguf::Metadata;
use crate::{Error, files};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// End tokens by `config.json`, `generation_config.json` and `tokenizer_config.json`: the union, because an
/// instruction-tuned model often names its end of turn in one of them only.
pub(crate) fn from_directory(
    directory: &Path,
    config: &Map<String, Value>,
    tokenizer_config: &Map<String, Value>,
    vocab_size: usize,
) -> Result<Vec<u32>, Error> {
    let mut ids = BTreeSet::new();
    let generation_path = directory.join("generation_config.json");
    let generation = files::read_object(&generation_path, files::CONFIG_LIMIT)?.unwrap_or_default();
    for (config, path) in [(config, directory.join("config.json")), (&generation, generation_path)] {
        for id in listed(config.get("eos_token_id")) {
            let id = id.filter(|&id| id < vocab_size as u64).and_then(|id| u32::try_from(id).ok());
            ids.insert(id.ok_or_else(|| {
                Error::malformed(&path, format!("eos_token_id is not a token id below {vocab_size}"))
            })?);
        }
    }
    ids.extend(named_end(tokenizer_config).filter(|&id| (id as usize) < vocab_size));
    Ok(ids.into_iter().collect())
}

/// One id or a list of ids.
fn listed(value: Option<&Value>) -> Vec<Option<u64>> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids.iter().map(Value::as_u64).collect(),
        Some(id) => vec![id.as_u64()],
    }
}

/// The id of `eos_token` by the configuration's own list of added tokens.
fn named_end(config: &Map<String, Value>) -> Option<u32> {
    let text = token_text(config, "eos_token")?;
    let added = config.get("added_tokens_decoder")?.as_object()?;
    let is_end = |token: &Value| token.get("content").and_then(Value::as_str) == Some(&text);
    added.iter().find(|(_, token)| is_end(token)).and_then(|(id, _)| id.parse().ok())
}

/// End of text, of turn and of message of a GGUF file.
pub(crate) fn from_gguf(metadata: &Metadata, vocab_size: usize) -> Result<Vec<u32>, Error> {
    let mut ids = BTreeSet::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        let Some(id) = metadata.id(key)? else { continue };
        if id as usize >= vocab_size {
            let what = format!("metadata key {key} is {id}, but the vocabulary has {vocab_size} tokens");
            return Err(Error::malformed(metadata.file(), what));
        }
        ids.insert(id);
    }
    Ok(ids.into_iter().collect())
}
