//! SentencePiece BPE with byte fallback (`tokenizer.ggml.model` `llama`).
//!
//! SentencePiece keeps a score for each piece and no merges; joining the two neighbours whose piece scores highest is
//! the same as applying merges in the order of falling scores.

use super::vocabulary::{TokenType, Vocabulary};
use super::{Parts, describe as assemble};
use crate::Error;
use crate::gguf::Metadata;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::HashMap;

/// SentencePiece writes a blank as this character.
const BLANK: &str = "\u{2581}";
/// Longest piece, in bytes, that is split to find its merges. SentencePiece makes none longer than 16 characters unless
/// told to, and finding the merges of a piece takes time that grows with the square of its length.
const MAX_PIECE: usize = 256;

/// The `tokenizer.json` of this vocabulary.
pub(super) fn describe(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Value, Error> {
    let file = metadata.file();
    let unsupported = |what: &str| Err(Error::unsupported(file.display().to_string(), what));
    if metadata.contains("tokenizer.ggml.precompiled_charsmap") {
        return unsupported("tokenizer.ggml.precompiled_charsmap (SentencePiece normalization)");
    }
    if metadata.flag("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
        return unsupported("tokenizer.ggml.remove_extra_whitespaces");
    }
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unknown = vocabulary.iter().find(|&(_, kind)| kind == TokenType::Unknown).map(|(text, _)| text);
    let bytes = vocabulary.iter().filter(|&(_, kind)| kind == TokenType::Byte).count();
    if unknown.is_none() && bytes < 256 {
        return Err(Error::tokenizer(file, "has neither an unknown token nor one for each byte"));
    }

    let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK});
    let mut normalizers = vec![blanks];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": BLANK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": BLANK}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let parts = Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary.ids(), "merges": merges(metadata, vocabulary)?,
        }),
        begins: true,
    };
    assemble(metadata, vocabulary, parts)
}

/// Every way to join two pieces into a third, best first.
fn merges<'a>(metadata: &Metadata, vocabulary: &Vocabulary<'a>) -> Result<Vec<(&'a str, &'a str)>, Error> {
    let file = metadata.file();
    let scores = metadata.numbers("tokenizer.ggml.scores")?;
    let scores = scores.ok_or_else(|| Error::tokenizer(file, "metadata key tokenizer.ggml.scores is missing"))?;
    if scores.len() != vocabulary.len() || scores.iter().any(|s| s.is_nan()) {
        return Err(Error::tokenizer(file, "tokenizer.ggml.scores does not hold one number for each token"));
    }
    // Control tokens and bytes are never made by merging.
    let joinable = |kind| matches!(kind, TokenType::Normal | TokenType::UserDefined);
    let pieces = vocabulary.iter().zip(scores).zip(0u32..).filter(|(((_, kind), _), _)| joinable(*kind));
    let pieces: HashMap<&str, (f32, u32)> = pieces.map(|(((text, _), &score), id)| (text, (score, id))).collect();

    let mut found = Vec::new();
    for (&piece, &(score, id)) in &pieces {
        if piece.len() > MAX_PIECE {
            let length = piece.len();
            return Err(Error::tokenizer(
                file,
                format!("has a piece of {length} bytes; at most {MAX_PIECE} are allowed"),
            ));
        }
        for (cut, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(cut);
            if let (Some(&(_, l)), Some(&(_, r))) = (pieces.get(left), pieces.get(right)) {
                // Among equal scores the order of the Hugging Face converter: longer halves, then lower ids.
                let lengths = (left.chars().count(), right.chars().count());
                found.push((score, (Reverse(lengths), id, l, r), (left, right)));
            }
        }
    }
    found.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    Ok(found.into_iter().map(|(_, _, halves)| halves).collect())
}
