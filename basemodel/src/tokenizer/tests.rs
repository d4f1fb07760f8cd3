//! Rebuilt tokenizers against ids of the reference implementations (`tests/fixtures/make_tokenizer_fixtures.py`).

use super::*;
use crate::gguf::Gguf;
use serde::Deserialize;
use std::path::PathBuf;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let bytes = std::fs::read(&path).unwrap();
    if name.ends_with(".zst") { zstd::decode_all(bytes.as_slice()).unwrap() } else { bytes }
}

fn rebuilt(name: &str) -> Tokenizer {
    from_gguf(&Gguf::parse(&fixture(name), Path::new(name)).unwrap().metadata).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

/// Every string of the fixture gives the reference's ids, and decodes to itself where nothing is normalized.
fn check(gguf: &str, expected: &str, lossless: bool) {
    let tokenizer = rebuilt(gguf);
    let cases: Vec<Case> = serde_json::from_slice(&fixture(expected)).unwrap();
    assert!(cases.len() > 200, "{} cases", cases.len());
    let wrong: Vec<_> = cases
        .iter()
        .filter(|case| {
            let same_text = || tokenizer.decode(&case.ids, false).unwrap() == case.text;
            ids(&tokenizer, &case.text) != case.ids || (lossless && !same_text())
        })
        .map(|case| (&case.text, &case.ids, ids(&tokenizer, &case.text)))
        .collect();
    assert!(wrong.is_empty(), "{gguf}: {} of {} differ: {:#?}", wrong.len(), cases.len(), &wrong[..wrong.len().min(5)]);
}

#[test]
fn smollm() {
    check("smollm.gguf", "smollm.json", true);
}

#[test]
fn gpt2() {
    check("gpt-2.gguf", "gpt-2.json", true);
}

#[test]
fn llama_bpe() {
    check("llama-bpe.gguf", "llama-bpe.json", true);
}

#[test]
fn qwen2() {
    check("qwen2.gguf", "qwen2.json", false);
}

#[test]
fn sentencepiece() {
    check("sentencepiece.gguf", "sentencepiece.json", false);
}

#[test]
fn sentencepiece_decodes_without_its_prefix() {
    let tokenizer = rebuilt("sentencepiece.gguf");
    for text in ["Hello  world", " leading", "今日は 🙂", "a\nb"] {
        assert_eq!(tokenizer.decode(&ids(&tokenizer, text), true).unwrap(), text);
    }
}

#[test]
fn the_real_smollm2() {
    check("smollm2-135m-instruct.gguf.zst", "smollm2-135m-instruct.json", true);
}

#[test]
fn golden_samples_survive_decoding_and_encoding() {
    #[derive(Deserialize)]
    struct Sample {
        prompt_len: usize,
        ids: Vec<u32>,
    }
    let tokenizer = rebuilt("smollm2-135m-instruct.gguf.zst");
    let samples: Vec<Sample> = serde_json::from_slice(&fixture("golden-ids.json.zst")).unwrap();
    assert_eq!(samples.len(), 96);
    for sample in &samples {
        let (prompt, answer) = sample.ids.split_at(sample.prompt_len);
        for part in [prompt, answer] {
            assert_eq!(ids(&tokenizer, &tokenizer.decode(part, false).unwrap()), part);
        }
    }
}

/// Sequences begin with the begin token where the metadata or the kind says so, and only when special tokens are
/// asked for.
#[test]
fn begin_tokens() {
    for (name, begin) in [("smollm.gguf", None), ("llama-bpe.gguf", Some(0)), ("sentencepiece.gguf", Some(1))] {
        let tokenizer = rebuilt(name);
        let framed = tokenizer.encode_fast("hello", true).unwrap().get_ids().to_vec();
        let bare = ids(&tokenizer, "hello");
        assert_eq!(framed, begin.into_iter().chain(bare).collect::<Vec<_>>(), "{name}");
    }
}
