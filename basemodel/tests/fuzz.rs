//! Mutated and cut models: never a panic, a hang or a large allocation. Whatever opens must also give its weights and
//! tokenizer, or a clear error.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use ballast_basemodel::ModelSource;
use proptest::collection::vec;
use proptest::prelude::*;
use safetensors::tensor::Dtype;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use support::{GgufBuilder, bytes_of, config, safetensors_bytes, tensors};
use tempfile::TempDir;

/// One change to a file.
#[derive(Clone, Debug)]
enum Mutation {
    Set(usize, u8),
    /// A length or count becomes an edge case.
    Word(usize, u64),
    Cut(usize),
    Remove(usize, usize),
    Repeat(usize, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let edges = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(1 << 31),
        Just(1 << 62),
        Just(i64::MAX as u64),
        any::<u64>()
    ];
    prop_oneof![
        5 => (any::<usize>(), any::<u8>()).prop_map(|(at, to)| Mutation::Set(at, to)),
        3 => (any::<usize>(), edges).prop_map(|(at, to)| Mutation::Word(at, to)),
        1 => any::<usize>().prop_map(Mutation::Cut),
        1 => (any::<usize>(), 1..64usize).prop_map(|(at, n)| Mutation::Remove(at, n)),
        1 => (any::<usize>(), 1..64usize).prop_map(|(at, n)| Mutation::Repeat(at, n)),
    ]
}

/// Applies the changes to the first `reach` bytes, where the structure is.
fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation], reach: usize) -> Vec<u8> {
    for mutation in mutations {
        let place = |at: &usize| at % reach.min(bytes.len()).max(1);
        match mutation {
            Mutation::Set(at, to) => {
                let at = place(at);
                bytes.iter_mut().skip(at).take(1).for_each(|b| *b = *to);
            }
            Mutation::Word(at, to) => {
                let at = place(at);
                bytes.iter_mut().skip(at).zip(to.to_le_bytes()).for_each(|(b, to)| *b = to);
            }
            Mutation::Cut(at) => bytes.truncate(at % (bytes.len() + 1)),
            Mutation::Remove(at, n) => {
                let at = place(at);
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            Mutation::Repeat(at, n) => {
                let at = place(at);
                let part = bytes[at..(at + n).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

/// Opens the model and asks for all it has.
fn exercise(path: &Path) {
    let Ok(model) = ModelSource::parse(path.to_str().unwrap(), None).and_then(|s| s.fetch()) else { return };
    for name in model.tensor_names() {
        let shape = tensors().get(&name).map(|t| t.0.clone()).unwrap_or_default();
        let _ = model.tensor_f32(&name, &shape);
    }
    if let Ok(tokenizer) = model.tokenizer() {
        let _ = tokenizer.encode_fast("<|im_start|>ab 12\n", true).map(|e| tokenizer.decode(e.get_ids(), false));
    }
    model.sha256().unwrap();
}

/// A sound directory with a tokenizer, for tests that change one file of it.
fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    support::write_directory(directory.path());
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer_json()).unwrap();
    let path = directory.path().to_owned();
    (directory, path)
}

fn tokenizer_json() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.gguf");
        std::fs::write(&path, GgufBuilder::tiny().build()).unwrap();
        let model = ModelSource::Gguf(path).fetch().unwrap();
        model.tokenizer().unwrap().to_string(false).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gguf(mutations in vec(mutation(), 1..4)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.gguf");
        std::fs::write(&path, mutate(GgufBuilder::tiny().build(), &mutations, 2000)).unwrap();
        exercise(&path);
    }

    /// Whole vocabularies of both kinds, hit anywhere.
    #[test]
    fn gguf_tokenizers(name in prop_oneof![Just("llama-bpe.gguf"), Just("sentencepiece.gguf")], mutations in vec(mutation(), 1..6)) {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.gguf");
        std::fs::write(&path, mutate(std::fs::read(fixture).unwrap(), &mutations, usize::MAX)).unwrap();
        exercise(&path);
    }

    #[test]
    fn safetensors(mutations in vec(mutation(), 1..4)) {
        let (_guard, path) = directory();
        let bytes = safetensors_bytes(&tensors(), Dtype::F32, bytes_of);
        std::fs::write(path.join("model.safetensors"), mutate(bytes, &mutations, 1500)).unwrap();
        exercise(&path);
    }

    #[test]
    fn configuration(mutations in vec(mutation(), 1..4)) {
        let (_guard, path) = directory();
        std::fs::write(path.join("config.json"), mutate(config().to_string().into_bytes(), &mutations, 4096)).unwrap();
        exercise(&path);
    }

    #[test]
    fn tokenizer(mutations in vec(mutation(), 1..4)) {
        let (_guard, path) = directory();
        std::fs::write(path.join("tokenizer.json"), mutate(tokenizer_json().as_bytes().to_vec(), &mutations, 4096)).unwrap();
        exercise(&path);
    }

    #[test]
    fn noise(bytes in vec(any::<u8>(), 0..300)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.gguf");
        std::fs::write(&path, [&b"GGUF\x03\0\0\0"[..], &bytes].concat()).unwrap();
        exercise(&path);
    }
}
