//! Hostile and malformed models: the exact error that a user sees for each.

mod support;

use ballast_basemodel::{Error, ModelSource};
use ballast_proto::{Coded, ErrorCode};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::path::Path;
use support::{
    GgufBuilder, array_value, bytes_of, config, f32_value, safetensors_bytes, string, string_value, tensors, typed,
    u32_value, write_directory,
};
use tempfile::tempdir;

use ErrorCode::{ModelMalformed, ModelNotFound, ModelTensor, ModelUnsupported, Tokenizer};

fn failure(path: &Path, also: impl Fn(&ballast_basemodel::BaseModel) -> Result<(), Error>) -> Error {
    let opened = ModelSource::parse(path.to_str().unwrap(), None).and_then(|s| s.fetch());
    match opened.and_then(|model| also(&model)) {
        Ok(()) => panic!("{} was accepted", path.display()),
        Err(error) => error,
    }
}

/// Everything that reads something: the tokenizer and all tensors.
fn use_it(model: &ballast_basemodel::BaseModel) -> Result<(), Error> {
    model.tokenizer()?;
    tensors().iter().try_for_each(|(name, (shape, _))| model.tensor_f32(name, shape).map(drop))
}

fn gguf_case(bytes: &[u8], code: ErrorCode, message: &str) {
    let directory = tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let error = failure(&path, use_it);
    assert_eq!(error.to_string().replace(path.to_str().unwrap(), "m.gguf"), message);
    assert_eq!(error.code(), code, "{message}");
}

#[test]
fn gguf_containers() {
    let good = GgufBuilder::tiny();
    let bytes = good.build();
    let header =
        |counts: [u64; 2]| [&b"GGUF\x03\0\0\0"[..], &counts[0].to_le_bytes(), &counts[1].to_le_bytes()].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "m.gguf: is not a GGUF file (it does not begin with the letters GGUF)"),
        (b"GGML".to_vec(), "m.gguf: is not a GGUF file (it does not begin with the letters GGUF)"),
        (b"GGUF".to_vec(), "m.gguf: ends early: 4 bytes wanted at byte 4, 0 left"),
        (b"GGUF\x01\0\0\0".to_vec(), "m.gguf: has GGUF version 1; versions 2 and 3 are read"),
        (b"GGUF\0\0\0\x03".to_vec(), "m.gguf: is a big-endian GGUF file; only little-endian is read"),
        (header([u64::MAX, 0]), "m.gguf: claims 18446744073709551615 tensors, more than it can hold"),
        (header([0, 1 << 17]), "m.gguf: claims 131072 metadata keys, more than it can hold"),
        (
            [header([0, 1]), u64::MAX.to_le_bytes().to_vec(), vec![0; 8]].concat(),
            "m.gguf: claims 18446744073709551615 bytes of key at byte 24, but only 8 bytes are left",
        ),
        (
            [header([0, 1]), string("k"), typed(9, &[[8, 0, 0, 0].as_slice(), &(1u64 << 60).to_le_bytes()].concat())]
                .concat(),
            "m.gguf: claims 1152921504606846976 array elements at byte 41, but only 0 bytes are left (metadata key k)",
        ),
        (
            [header([0, 1]), string("k"), typed(13, &[0; 8])].concat(),
            "m.gguf: has a value of unknown type 13 before byte 37 (metadata key k)",
        ),
        (
            [header([0, 1]), string("k"), typed(7, &[2])].concat(),
            "m.gguf: has the boolean 2 at byte 37 (metadata key k)",
        ),
        (
            [header([0, 1]), string("k"), array_value(9, &[])].concat(),
            "m.gguf: has an array of arrays before byte 41 (metadata key k)",
        ),
        (
            [header([0, 1]), string("k"), typed(8, &[&2u64.to_le_bytes()[..], b"\xff\xfe"].concat())].concat(),
            "m.gguf: has a string at byte 37 that is not UTF-8 (metadata key k)",
        ),
        (
            [header([0, 2]), string("k"), u32_value(1), string("k"), u32_value(2)].concat(),
            "m.gguf: has the metadata key k twice",
        ),
        (
            good.clone().set("general.alignment", u32_value(24)).build(),
            "m.gguf: general.alignment is 24; a power of two from 8 to 1048576 is allowed",
        ),
        (
            good.clone().set("general.alignment", u32_value(0)).build(),
            "m.gguf: general.alignment is 0; a power of two from 8 to 1048576 is allowed",
        ),
        (
            bytes[..bytes.len() - 1].to_vec(),
            "m.gguf: tensor output_norm.weight ends at byte 3840, but the file has only 3839: is it truncated?",
        ),
    ];
    for (bytes, message) in cases {
        gguf_case(&bytes, ModelMalformed, message);
    }
}

#[test]
fn gguf_tensors() {
    let with = |name: &str, change: &dyn Fn(&mut (String, Vec<u64>, u32, Vec<u8>))| {
        let mut builder = GgufBuilder::tiny();
        change(builder.tensor(name));
        builder.build()
    };
    let overlapping = || {
        let good = GgufBuilder::tiny();
        let mut offsets: Vec<u64> =
            good.tensors.iter().scan(0, |at, t| Some(std::mem::replace(at, *at + t.3.len() as u64))).collect();
        offsets[1] = 0;
        good.build_with_offsets(&offsets)
    };
    let down = "blk.0.ffn_down.weight";
    for (bytes, code, message) in [
        (
            with("token_embd.weight", &|t| t.1 = vec![1 << 40, 1 << 40]),
            ModelMalformed,
            "m.gguf: tensor token_embd.weight of shape [1099511627776, 1099511627776] is too large",
        ),
        (
            with("token_embd.weight", &|t| t.1 = vec![0, 8]),
            ModelMalformed,
            "m.gguf: tensor token_embd.weight has a dimension of length 0 or too large",
        ),
        (
            with("token_embd.weight", &|t| t.1 = vec![8; 5]),
            ModelMalformed,
            "m.gguf: tensor token_embd.weight has 5 dimensions; 1 to 4 are allowed",
        ),
        (
            with(down, &|t| t.2 = 8),
            ModelMalformed,
            "m.gguf: tensor blk.0.ffn_down.weight has rows of 12 elements, no whole number of Q8_0 blocks",
        ),
        (
            with(down, &|t| t.2 = 14),
            ModelUnsupported,
            "tensor model.layers.0.mlp.down_proj.weight of m.gguf: tensor type Q6_K is not supported",
        ),
        (
            with(down, &|t| t.2 = 999),
            ModelUnsupported,
            "tensor model.layers.0.mlp.down_proj.weight of m.gguf: tensor type number 999 is not supported",
        ),
        (
            with(down, &|t| t.1 = vec![8, 12]),
            ModelTensor,
            "tensor model.layers.0.mlp.down_proj.weight of m.gguf: has shape [12, 8] instead of [8, 12]",
        ),
        (
            with(down, &|t| t.0 = "blk.1.ffn_down.weight".into()),
            ModelTensor,
            "tensor model.layers.0.mlp.down_proj.weight of m.gguf: is missing",
        ),
        (
            with(down, &|t| t.0 = "token_embd.weight".into()),
            ModelMalformed,
            "m.gguf: has the tensor token_embd.weight twice",
        ),
        (
            with(down, &|t| t.3[4..8].copy_from_slice(&f32::NAN.to_le_bytes())),
            ModelTensor,
            "tensor model.layers.0.mlp.down_proj.weight of m.gguf: holds NaN at element 1",
        ),
        (
            with(down, &|t| t.3[8..12].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes())),
            ModelTensor,
            "tensor model.layers.0.mlp.down_proj.weight of m.gguf: holds -inf at element 2",
        ),
        (overlapping(), ModelMalformed, "m.gguf: tensors blk.0.attn_norm.weight and token_embd.weight overlap"),
    ] {
        gguf_case(&bytes, code, message);
    }
}

#[test]
fn gguf_metadata() {
    let good = GgufBuilder::tiny;
    let tokens = |texts: &[&str]| array_value(8, &texts.iter().map(|t| string(t)).collect::<Vec<_>>());
    let rope_freqs = || {
        let mut builder = good();
        builder.tensors.push(("rope_freqs.weight".into(), vec![2], 0, bytes_of(&[1.0, 7.5])));
        builder.build()
    };
    for (bytes, code, message) in [
        (
            good().without("general.architecture").build(),
            ModelMalformed,
            "m.gguf: metadata key general.architecture is missing",
        ),
        (
            good().set("general.architecture", string_value("gemma2")).build(),
            ModelUnsupported,
            "m.gguf: general.architecture gemma2 is not supported",
        ),
        (
            good().set("llama.block_count", string_value("1")).build(),
            ModelMalformed,
            "m.gguf: metadata key llama.block_count is not a non-negative integer",
        ),
        (
            good().set("llama.block_count", u32_value(u32::MAX)).build(),
            ModelMalformed,
            "m.gguf: number of layers is 4294967295; 1 to 4096 is allowed",
        ),
        (
            good().set("llama.attention.head_count", u32_value(0)).build(),
            ModelMalformed,
            "m.gguf: llama.embedding_length 8 is not a multiple of llama.attention.head_count 0",
        ),
        (
            good().set("llama.attention.head_count_kv", u32_value(0)).build(),
            ModelMalformed,
            "m.gguf: number of key/value heads is 0; 1 to 4096 is allowed",
        ),
        (
            good().set("llama.rope.dimension_count", u32_value(2)).build(),
            ModelUnsupported,
            "m.gguf: llama.rope.dimension_count 2 with heads of 4 channels is not supported",
        ),
        (
            good().set("llama.expert_count", u32_value(8)).build(),
            ModelUnsupported,
            "m.gguf: a mixture of 8 experts is not supported",
        ),
        (
            good().set("llama.rope.scaling.type", string_value("yarn")).build(),
            ModelUnsupported,
            "m.gguf: rotary scaling yarn is not supported",
        ),
        (
            rope_freqs(),
            ModelUnsupported,
            "m.gguf: tensor rope_freqs.weight with other factors than Llama 3's is not supported",
        ),
        (
            good().set("llama.rope.freq_base", f32_value(f32::NAN)).build(),
            ModelMalformed,
            "m.gguf: rope_theta is NaN; a finite number above 1 is wanted",
        ),
        (
            good().set("tokenizer.ggml.eos_token_id", u32_value(8)).build(),
            ModelMalformed,
            "m.gguf: metadata key tokenizer.ggml.eos_token_id is 8, but there are 8 tokens",
        ),
        (
            good().set("tokenizer.ggml.pre", string_value("tekken")).build(),
            ModelUnsupported,
            "m.gguf: tokenizer.ggml.pre tekken is not supported",
        ),
        (
            good().set("tokenizer.ggml.model", string_value("bert")).build(),
            ModelUnsupported,
            "m.gguf: tokenizer.ggml.model bert is not supported",
        ),
        (
            good().set("tokenizer.ggml.model", string_value("llama")).build(),
            Tokenizer,
            "tokenizer of m.gguf: has neither an unknown token nor one for each byte",
        ),
        (
            good().set("tokenizer.ggml.tokens", tokens(&["a", "b", "c", "d", "e", "f", "g", "a"])).build(),
            Tokenizer,
            "tokenizer of m.gguf: tokens 0 and 7 are both \"a\"",
        ),
        (
            good().set("tokenizer.ggml.tokens", tokens(&["a", "b", "c"])).build(),
            Tokenizer,
            "tokenizer of m.gguf: has 3 tokens and 8 token types",
        ),
        (
            good().set("tokenizer.ggml.merges", tokens(&["ab"])).build(),
            Tokenizer,
            "tokenizer of m.gguf: tokenizer.ggml.merges holds \"ab\", which does not join two tokens into a third",
        ),
        (
            good().set("tokenizer.ggml.merges", tokens(&["a x"])).build(),
            Tokenizer,
            "tokenizer of m.gguf: tokenizer.ggml.merges holds \"a x\", which does not join two tokens into a third",
        ),
        (
            good().without("tokenizer.ggml.merges").build(),
            Tokenizer,
            "tokenizer of m.gguf: metadata key tokenizer.ggml.merges is missing",
        ),
    ] {
        gguf_case(&bytes, code, message);
    }
}

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
            "tokenizer of DIR/tokenizer.json: cannot be built: Token `b` out of vocabulary at line 1 column 74",
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
