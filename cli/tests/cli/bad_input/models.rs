//! Base models.

use super::cases::{Case, PREPARE, TRAIN, case};
use crate::scene::Scene;
use serde_json::{Value, json};

const CONFIG: &str = "model/config.json";
const WEIGHTS: &str = "model/model.safetensors";
const NORM: &str = "model.norm.weight";

/// A GGUF file in place of the directory.
fn gguf(scene: &Scene, bytes: &[u8]) {
    scene.write("model.gguf", bytes);
    scene.replace("\"model\"", "\"model.gguf\"");
}

/// GGUF header of version 3 with these counts of tensors and metadata.
fn gguf_header(tensors: u64, metadata: u64) -> Vec<u8> {
    [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &metadata.to_le_bytes()].concat()
}

fn config(scene: &Scene, key: &str, value: Value) {
    scene.edit_json(CONFIG, |config| config[key] = value);
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("no such path", "B3001", PREPARE, |s| s.replace("\"model\"", "\"nope\"")),
        case("a directory without config.json", "B3001", PREPARE, |s| s.remove(CONFIG)),
        case("a directory without weights", "B3001", PREPARE, |s| s.remove(WEIGHTS)),
        case("an unknown architecture", "B3002", PREPARE, |s| config(s, "model_type", json!("mamba"))),
        case("an unknown activation", "B3002", PREPARE, |s| config(s, "hidden_act", json!("mish"))),
        case("config.json that is not JSON", "B3003", PREPARE, |s| s.write(CONFIG, "{\"model_type\": ")),
        case("config.json without a size", "B3003", PREPARE, |s| {
            s.edit_json(CONFIG, |config| drop(config.as_object_mut().unwrap().remove("hidden_size")));
        }),
        case("a negative size", "B3003", PREPARE, |s| config(s, "num_hidden_layers", json!(-2))),
        case("a size that no memory holds", "B3003", PREPARE, |s| config(s, "vocab_size", json!(u64::MAX))),
        case("heads that do not divide", "B3003", PREPARE, |s| config(s, "num_key_value_heads", json!(3))),
        case("weights that are cut off", "B3003", PREPARE, |s| s.cut(WEIGHTS, 60_000)),
        case("an empty weights file", "B3003", PREPARE, |s| s.cut(WEIGHTS, 0)),
        case("a header of 2^63 bytes", "B3003", PREPARE, |s| s.write(WEIGHTS, (1_u64 << 63).to_le_bytes())),
        case("a header that is not JSON", "B3003", PREPARE, |s| s.write(WEIGHTS, b"\x04\0\0\0\0\0\0\0abcd")),
        case("tensors that overlap", "B3003", PREPARE, |s| {
            s.edit_tensors(|header, _| header[NORM]["data_offsets"] = json!([0, 128]));
        }),
        case("a Git LFS pointer", "B3003", PREPARE, |s| {
            s.write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
        }),
        case("a tensor that is missing", "B3004", PREPARE, |s| {
            s.edit_tensors(|header, _| {
                let header = header.as_object_mut().unwrap();
                let norm = header.remove(NORM).unwrap();
                header.insert("model.other.weight".into(), norm);
            });
        }),
        case("a tensor of another shape", "B3004", PREPARE, |s| {
            s.edit_tensors(|header, _| header[NORM]["shape"] = json!([16, 2]));
        }),
        case("integers for weights", "B3002", PREPARE, |s| {
            s.edit_tensors(|header, _| header[NORM]["dtype"] = json!("I32"));
        }),
        case("a weight that is NaN", "B3004", TRAIN, |s| {
            s.edit_tensors(|header, data| {
                let start = header[NORM]["data_offsets"][0].as_u64().unwrap() as usize;
                data[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            });
        }),
        case("no tokenizer", "B3006", PREPARE, |s| s.remove("model/tokenizer.json")),
        case("a tokenizer that is not JSON", "B3006", PREPARE, |s| s.cut("model/tokenizer.json", 100)),
        case("a GGUF file that is none", "B3003", PREPARE, |s| gguf(s, b"GGML and more")),
        case("a GGUF file that is cut off", "B3003", PREPARE, |s| gguf(s, &gguf_header(1, 1))),
        case("a GGUF file with 2^60 tensors", "B3003", PREPARE, |s| gguf(s, &gguf_header(1 << 60, 0))),
        case("a GGUF file of version 99", "B3003", PREPARE, |s| {
            gguf(s, b"GGUF\x63\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")
        }),
        Case {
            env: &[("HF_HUB_OFFLINE", "1"), ("HF_HOME", "hub")],
            ..case("a hub model while offline", "B3001", PREPARE, |s| s.replace("\"model\"", "\"hf:no/where\""))
        },
        Case {
            env: &[("HF_ENDPOINT", "http://127.0.0.1:1"), ("HF_HOME", "hub")],
            ..case("a hub that is not there", "B3005", PREPARE, |s| s.replace("\"model\"", "\"hf:no/where\""))
        },
    ]
}
