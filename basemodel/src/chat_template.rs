//! The model's own chat template.

use crate::gguf::Metadata;
use crate::{Error, files};
use serde_json::{Map, Value};
use std::path::Path;

/// Largest template; real ones hold some ten kilobytes.
const TEMPLATE_LIMIT: u64 = 1 << 20;

/// A Jinja chat template and the special tokens it may print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    /// The Jinja source.
    pub source: String,
    /// Text of the token that begins a sequence.
    pub bos_token: Option<String>,
    /// Text of the token that ends a sequence.
    pub eos_token: Option<String>,
    /// Text of the padding token.
    pub pad_token: Option<String>,
    /// Text of the unknown token.
    pub unk_token: Option<String>,
}

/// The template of a model directory: `chat_template.jinja`, or else `chat_template` of the tokenizer's configuration.
pub(crate) fn from_directory(
    directory: &Path,
    tokenizer_config: &Map<String, Value>,
) -> Result<Option<ChatTemplate>, Error> {
    let config_path = directory.join("tokenizer_config.json");
    let source = match files::read_text(&directory.join("chat_template.jinja"), TEMPLATE_LIMIT)? {
        Some(source) => Some(source),
        None => configured(tokenizer_config, &config_path)?,
    };
    Ok(source.map(|source| ChatTemplate {
        source,
        bos_token: token_text(tokenizer_config, "bos_token"),
        eos_token: token_text(tokenizer_config, "eos_token"),
        pad_token: token_text(tokenizer_config, "pad_token"),
        unk_token: token_text(tokenizer_config, "unk_token"),
    }))
}

/// `chat_template` is a text, or a list of named texts of which `default` counts.
fn configured(config: &Map<String, Value>, path: &Path) -> Result<Option<String>, Error> {
    let malformed = || Error::malformed(path, "chat_template is neither a string nor a list with one named default");
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            let source = default.and_then(|t| t.get("template")).and_then(Value::as_str);
            source.map(|s| Some(s.to_owned())).ok_or_else(malformed)
        }
        Some(_) => Err(malformed()),
    }
}

/// A special token is a text, or an object whose `content` it is.
pub(crate) fn token_text(config: &Map<String, Value>, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// The template of a GGUF file.
pub(crate) fn from_gguf(metadata: &Metadata) -> Result<Option<ChatTemplate>, Error> {
    let Some(source) = metadata.text("tokenizer.chat_template")? else { return Ok(None) };
    Ok(Some(ChatTemplate {
        source: source.to_owned(),
        bos_token: metadata.token_text("tokenizer.ggml.bos_token_id")?,
        eos_token: metadata.token_text("tokenizer.ggml.eos_token_id")?,
        pad_token: metadata.token_text("tokenizer.ggml.padding_token_id")?,
        unk_token: metadata.token_text("tokenizer.ggml.unknown_token_id")?,
    }))
}
