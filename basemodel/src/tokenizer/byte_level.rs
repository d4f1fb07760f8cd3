//! Byte-level BPE (`tokenizer.ggml.model` `gpt2`).
//!
//! `tokenizer.ggml.pre` names how text is cut into words before merging. Only kinds are read whose rules are known to
//! be those of the original `tokenizer.json`.

use super::vocabulary::Vocabulary;
use super::{Parts, describe as assemble};
use crate::Error;
use crate::gguf::Metadata;
use serde_json::{Value, json};

/// Words of Llama 3: contractions, letters, up to three digits, punctuation, line breaks, blanks.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of Qwen 2: the same with single digits.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The `tokenizer.json` of this vocabulary.
pub(super) fn describe(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Value, Error> {
    let file = metadata.file();
    let merges = metadata.strings("tokenizer.ggml.merges")?;
    let merges = merges.ok_or_else(|| Error::tokenizer(file, "metadata key tokenizer.ggml.merges is missing"))?;
    let ids = vocabulary.ids();
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            [left, right, format!("{left}{right}").as_str()].iter().all(|token| ids.contains_key(*token))
        });
        let what = || format!("tokenizer.ggml.merges holds {merge:?}, which does not join two tokens into a third");
        pairs.push(pair.ok_or_else(|| Error::tokenizer(file, what()))?);
    }

    let kind = metadata.text("tokenizer.ggml.pre")?;
    let (normalizer, pre_tokenizer, llama3) = match kind {
        // Digits one by one, then GPT-2's words.
        Some("smollm") => (Value::Null, sequence(json!({"type": "Digits", "individual_digits": true}), true), false),
        Some("gpt-2") => (Value::Null, byte_level(true), false),
        Some("llama-bpe" | "llama3" | "llama-v3") => (Value::Null, sequence(split(LLAMA3_WORDS), false), true),
        Some("qwen2") => (json!({"type": "NFC"}), sequence(split(QWEN2_WORDS), false), false),
        Some(other) => {
            return Err(Error::unsupported(file.display().to_string(), format!("tokenizer.ggml.pre {other}")));
        }
        None => return Err(Error::tokenizer(file, "metadata key tokenizer.ggml.pre is missing")),
    };
    let parts = Parts {
        normalizer,
        pre_tokenizer,
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": llama3,
            "vocab": ids, "merges": pairs,
        }),
        begins: llama3,
    };
    assemble(metadata, vocabulary, parts)
}

fn sequence(first: Value, gpt2_words: bool) -> Value {
    json!({"type": "Sequence", "pretokenizers": [first, byte_level(gpt2_words)]})
}

fn byte_level(gpt2_words: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": gpt2_words})
}

fn split(words: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": false})
}
