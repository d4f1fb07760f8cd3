//! What several of these tests need.

use ballast_coordinator::config::{LookAhead, LookAheadMode, Paths, RunFile};
use ballast_coordinator::data::ModelText;
use ballast_coordinator::data::row::{Message, Role};
use ballast_coordinator::data::template::TemplateSource;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// A file of `tests/fixtures/data`.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A byte-level tokenizer of one token a byte, but for a few merges; special tokens as ChatML has them.
pub(crate) fn byte_tokenizer() -> Tokenizer {
    let alphabet: Vec<String> = (0..=255_u8).map(byte_character).collect();
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")];
    let tokens = alphabet.into_iter().chain(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let vocab: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];
    let added: Vec<Value> = specials
        .iter()
        .enumerate()
        .map(|(i, text)| {
            json!({ "id": vocab.len() + i, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
        })
        .collect();
    build(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [vocab.len()], "tokens": ["<s>"] } } },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": merges.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>() },
    }))
}

/// The printable character that byte-level tokenizers write a byte as.
fn byte_character(byte: u8) -> String {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code =
        if printable(byte) { u32::from(byte) } else { 256 + (0..byte).filter(|b| !printable(*b)).count() as u32 };
    char::from_u32(code).unwrap().to_string()
}

/// A SentencePiece-like tokenizer of one token a character, with the given normalizer and pre-tokenizer.
pub(crate) fn piece_tokenizer(normalizer: Value, pre_tokenizer: Value) -> Tokenizer {
    let mut vocab = Map::new();
    for piece in ["<unk>", "<s>", "</s>", "▁", "▁a", "a", "b", "c", "[", "]", "I", "N", "S", "T", "/", "5", "▁5"]
    {
        vocab.insert(piece.into(), json!(vocab.len()));
    }
    for byte in 0..=255_u8 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"]
        .iter()
        .enumerate()
        .map(|(id, text)| {
            json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
        })
        .collect();
    build(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null,
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": ["▁ a", "▁ 5"] },
    }))
}

/// How Llama 2's tokenizer puts a space before every text.
pub(crate) fn prepending_normalizer() -> Value {
    json!({ "type": "Sequence", "normalizers": [
        { "type": "Prepend", "prepend": "▁" },
        { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
    ] })
}

fn build(tokenizer: Value) -> Tokenizer {
    Tokenizer::from_bytes(tokenizer.to_string()).unwrap()
}

/// A model of the byte tokenizer that speaks ChatML.
pub(crate) fn byte_model() -> ModelText {
    let tokenizer = byte_tokenizer();
    let template = TemplateSource::built_in("chatml", None, None).unwrap();
    ModelText {
        stop_ids: vec![tokenizer.token_to_id("<|im_end|>").unwrap()],
        vocab_size: tokenizer.get_vocab_size(true),
        chat_template: Some(TemplateSource { tokenizer_adds_bos: false, ..template }),
        max_positions: 2048,
        tokenizer,
    }
}

/// A run on `train`, cached within `directory`, without LookAhead.
pub(crate) fn run(directory: &Path, train: &str) -> RunFile {
    let mut run = RunFile::default();
    run.data.train = Paths::One(directory.join(train));
    run.data.cache_dir = Some(directory.join("cache"));
    run.lookahead = LookAhead { mode: LookAheadMode::Off, ..LookAhead::default() };
    run
}

/// Writes a file of rows, one a line.
pub(crate) fn write_rows(directory: &Path, name: &str, rows: &[Value]) {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(directory.join(name), text).unwrap();
}

/// A question and its answer as a row.
pub(crate) fn pair(prompt: &str, completion: &str) -> Value {
    json!({ "prompt": prompt, "completion": completion })
}

/// A user turn and an answer.
pub(crate) fn exchange(user: &str, answer: &str) -> Vec<Message> {
    vec![Message::new(Role::User, user), Message::new(Role::Assistant, answer)]
}
