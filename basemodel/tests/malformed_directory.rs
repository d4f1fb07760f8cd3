//! Hostile and malformed model directories: the exact error that a user sees for each.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use ballast_proto::{Coded, ErrorCode};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::path::Path;
use support::{bytes_of, config, failure, safetensors_bytes, tensors, use_it, write_directory};
use tempfile::tempdir;

use ErrorCode::{ModelMalformed, ModelNotFound, ModelTensor, ModelUnsupported, Tokenizer};

/// A directory in which some files are replaced; `DIR` stands for its path.
fn directory_case(files: &[(&str, &[u8])], code: ErrorCode, message: &str) {
    let directory = tempdir().unwrap();
    write_directory(directory.path());
    for (name, bytes) in files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    let error = failure(directory.path(), use_it);
    assert_eq!(error.to_string().replace(directory.path().to_str().unwrap(), "DIR"), message);
    assert_eq!(error.code(), code, "{message}");
}

fn config_with(key: &str, value: Value) -> Vec<u8> {
    let mut config = config();
    config[key] = value;
    config.to_string().into_bytes()
}

#[test]
fn configurations() {
    for (key, value, code, message) in [
        ("model_type", Value::Null, ModelMalformed, "DIR/config.json: model_type is missing"),
        (
            "model_type",
            json!("gemma3_text"),
            ModelUnsupported,
            "DIR/config.json: model_type gemma3_text is not supported",
        ),
        (
            "architectures",
            json!(["LlamaForSequenceClassification"]),
            ModelUnsupported,
            "DIR/config.json: the model class LlamaForSequenceClassification is not supported",
        ),
        (
            "quantization_config",
            json!({"bits": 4}),
            ModelUnsupported,
            "DIR/config.json: quantization_config (a quantized checkpoint) is not supported",
        ),
        (
            "hidden_size",
            json!("8"),
            ModelMalformed,
            "DIR/config.json: hidden_size is \"8\"; a non-negative integer is wanted",
        ),
        (
            "hidden_size",
            json!(-8),
            ModelMalformed,
            "DIR/config.json: hidden_size is -8; a non-negative integer is wanted",
        ),
        (
            "hidden_size",
            json!(9),
            ModelMalformed,
            "DIR/config.json: hidden_size 9 is not a multiple of num_attention_heads 2",
        ),
        (
            "hidden_size",
            json!(u64::MAX),
            ModelMalformed,
            "DIR/config.json: hidden_size 18446744073709551615 is not a multiple of num_attention_heads 2",
        ),
        (
            "intermediate_size",
            json!(1u64 << 40),
            ModelMalformed,
            "DIR/config.json: intermediate_size is 1099511627776; 1 to 1048576 is allowed",
        ),
        (
            "num_key_value_heads",
            json!(3),
            ModelMalformed,
            "DIR/config.json: 2 attention heads are not a multiple of 3 key/value heads",
        ),
        ("head_dim", json!(3), ModelMalformed, "DIR/config.json: head_dim is 3; rotary embeddings need an even number"),
        (
            "rms_norm_eps",
            json!(0),
            ModelMalformed,
            "DIR/config.json: the epsilon of RMSNorm is 0; a number between 0 and 1 is wanted",
        ),
        (
            "rope_theta",
            json!(0.5),
            ModelMalformed,
            "DIR/config.json: rope_theta is 0.5; a finite number above 1 is wanted",
        ),
        (
            "rope_scaling",
            json!({"type": "yarn", "factor": 4}),
            ModelUnsupported,
            "DIR/config.json: rope_scaling of type yarn is not supported",
        ),
        (
            "rope_scaling",
            json!({"type": "dynamic", "factor": 4}),
            ModelUnsupported,
            "DIR/config.json: rope_scaling of type dynamic is not supported",
        ),
        ("rope_scaling", json!({"type": "linear"}), ModelMalformed, "DIR/config.json: rope_scaling.factor is missing"),
        (
            "rope_parameters",
            json!({"rope_type": "linear", "factor": 0.5}),
            ModelMalformed,
            "DIR/config.json: the factor of rotary scaling is 0.5; a finite number from 1 is wanted",
        ),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_theta": 1e4}}),
            ModelUnsupported,
            "DIR/config.json: rope_parameters per layer type is not supported",
        ),
        ("hidden_act", json!("relu"), ModelUnsupported, "DIR/config.json: hidden_act relu is not supported"),
        (
            "layer_types",
            json!(["sliding_attention"]),
            ModelUnsupported,
            "DIR/config.json: layer_types with sliding_attention is not supported",
        ),
        (
            "partial_rotary_factor",
            json!(0.5),
            ModelUnsupported,
            "DIR/config.json: partial_rotary_factor 0.5 is not supported",
        ),
        ("eos_token_id", json!([2, 8]), ModelMalformed, "DIR/config.json: eos_token_id is not a token id below 8"),
        (
            "vocab_size",
            json!(9),
            ModelTensor,
            "tensor model.embed_tokens.weight of DIR/model.safetensors: has shape [8, 8] instead of [9, 8]",
        ),
        (
            "num_hidden_layers",
            json!(2),
            ModelTensor,
            "tensor model.layers.1.input_layernorm.weight of DIR/model.safetensors: is missing",
        ),
    ] {
        directory_case(&[("config.json", &config_with(key, value))], code, message);
    }
    directory_case(
        &[("config.json", b"{")],
        ModelMalformed,
        "DIR/config.json: is not JSON: EOF while parsing an object at line 1 column 1",
    );
    directory_case(&[("config.json", b"[]")], ModelMalformed, "DIR/config.json: is not a JSON object");
    directory_case(
        &[("tokenizer_config.json", br#"{"chat_template": [{"name": "rag"}]}"#)],
        ModelMalformed,
        "DIR/tokenizer_config.json: chat_template is neither a string nor a list with one named default",
    );
}

#[test]
fn safetensors_files() {
    let good = safetensors_bytes(&tensors(), Dtype::F32, bytes_of);
    let header = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut nan = tensors();
    nan.get_mut("model.norm.weight").unwrap().1[3] = f32::NAN;
    let nan = safetensors_bytes(&nan, Dtype::F32, bytes_of);
    let doubles =
        safetensors_bytes(&tensors(), Dtype::F64, |x| x.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect());
    let file = "model.safetensors";
    for (bytes, code, message) in [
        (vec![1, 2], ModelMalformed, "DIR/model.safetensors: ends within its header: is it truncated?"),
        (
            [0xff; 16].to_vec(),
            ModelMalformed,
            "DIR/model.safetensors: claims a header of 18446744073709551615 bytes; at most 67108864 are allowed",
        ),
        (
            good[..good.len() - 4].to_vec(),
            ModelMalformed,
            "DIR/model.safetensors: has not the length that its header asks for: is it truncated?",
        ),
        (good[..100].to_vec(), ModelMalformed, "DIR/model.safetensors: ends within its header: is it truncated?"),
        (
            header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,0]}}"#),
            ModelMalformed,
            "DIR/model.safetensors: tensor a has offsets that overlap, leave a gap or run backwards",
        ),
        (
            header(r#"{"a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}}"#),
            ModelMalformed,
            "DIR/model.safetensors: has a tensor whose size overflows",
        ),
        (
            doubles,
            ModelUnsupported,
            "tensor model.embed_tokens.weight of DIR/model.safetensors: tensor type F64 is not supported",
        ),
        (nan, ModelTensor, "tensor model.norm.weight of DIR/model.safetensors: holds NaN at element 3"),
    ] {
        // A tokenizer is asked for first and is not there; it does not matter to this table.
        directory_case(&[(file, &bytes), ("tokenizer.json", TOKENIZER)], code, message);
    }
    directory_case(
        &[],
        Tokenizer,
        "tokenizer of DIR/tokenizer.json: there is no such file (a fast tokenizer, tokenizer.json, is wanted)",
    );
}

#[test]
fn tokenizers() {
    for (text, message) in [
        ("{", "tokenizer of DIR/tokenizer.json: is not JSON: EOF while parsing an object at line 1 column 1"),
        (
            r#"{"added_tokens":[],"model":{"type":"BPE","vocab":{"a":8},"merges":[]}}"#,
            "tokenizer of DIR/tokenizer.json: token 8 (\"a\") is beyond the 8 rows of the embedding table",
        ),
        (
            r#"{"added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#,
            "tokenizer of DIR/tokenizer.json: cannot be built: Token `b` out of vocabulary at line 1 column 75",
        ),
    ] {
        directory_case(&[("tokenizer.json", text.as_bytes())], Tokenizer, message);
    }
}

const TOKENIZER: &[u8] = br#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;

#[test]
fn indexes_of_shards() {
    let index = "model.safetensors.index.json";
    for (text, code, message) in [
        (
            "{",
            ModelMalformed,
            "DIR/model.safetensors.index.json: is not JSON: EOF while parsing an object at line 1 column 1",
        ),
        ("{}", ModelMalformed, "DIR/model.safetensors.index.json: has no object weight_map"),
        (
            r#"{"weight_map":{}}"#,
            ModelMalformed,
            "DIR/model.safetensors.index.json: names 0 shards; 1 to 4096 are allowed",
        ),
        (
            r#"{"weight_map":{"a":"../../etc/x.safetensors"}}"#,
            ModelMalformed,
            "DIR/model.safetensors.index.json: weight_map of a is not the name of a .safetensors file beside it",
        ),
        (
            r#"{"weight_map":{"a":"none.safetensors"}}"#,
            ModelNotFound,
            "DIR/none.safetensors: No such file or directory (os error 2)",
        ),
        (
            r#"{"weight_map":{"a":"model.safetensors"}}"#,
            ModelTensor,
            "tensor a of DIR/model.safetensors.index.json: is not in model.safetensors, where the index has it",
        ),
    ] {
        directory_case(&[(index, text.as_bytes())], code, message);
    }
}

#[test]
fn directories_without_a_model() {
    let directory = tempdir().unwrap();
    let shown = directory.path().display();
    assert_eq!(failure(directory.path(), use_it).to_string(), format!("{shown} holds no config.json"));
    std::fs::write(directory.path().join("m.gguf"), "").unwrap();
    let expected = format!("{shown} holds no config.json; to use the GGUF file, name it: {shown}/m.gguf");
    assert_eq!(failure(directory.path(), use_it).to_string(), expected);
    let missing = failure(Path::new("/no/where.gguf"), use_it);
    assert_eq!(missing.to_string(), "/no/where.gguf: No such file or directory (os error 2)");
    assert_eq!(missing.code(), ModelNotFound);
}
