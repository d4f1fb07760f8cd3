//! Sound models of every layout open, and mean the same.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use ballast_basemodel::{Activation, BaseModel, Error, ModelSource, RotaryScaling};
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::path::Path;
use support::{GgufBuilder, bytes_of, config, safetensors_bytes, tensors, write_directory};
use tempfile::tempdir;

fn open(path: &Path) -> Result<BaseModel, Error> {
    ModelSource::parse(path.to_str().unwrap(), None)?.fetch()
}

fn assert_same_weights(model: &BaseModel) {
    let expected = tensors();
    assert_eq!(model.tensor_names(), expected.keys().cloned().collect::<Vec<_>>());
    for (name, (shape, values)) in expected {
        assert!(model.has_tensor(&name));
        assert_eq!(model.tensor_f32(&name, &shape).unwrap(), values, "{name}");
    }
}

#[test]
fn a_directory_in_every_precision() {
    let to_f16 = |x: &[f32]| x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect::<Vec<_>>();
    let to_bf16 = |x: &[f32]| x.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect::<Vec<_>>();
    let all = tensors();
    for bytes in [
        safetensors_bytes(&all, Dtype::F32, bytes_of),
        safetensors_bytes(&all, Dtype::F16, to_f16),
        safetensors_bytes(&all, Dtype::BF16, to_bf16),
    ] {
        let directory = tempdir().unwrap();
        write_directory(directory.path());
        std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
        let model = open(directory.path()).unwrap();
        assert_same_weights(&model);
        assert_eq!(model.stop_ids(), [2]);
        assert!(!model.has_tensor("lm_head.weight"));
    }
}

#[test]
fn shards() {
    let directory = tempdir().unwrap();
    write_directory(directory.path());
    std::fs::remove_file(directory.path().join("model.safetensors")).unwrap();
    let all = tensors();
    let mut map = serde_json::Map::new();
    for half in 0..2 {
        let name = format!("model-0000{}-of-00002.safetensors", half + 1);
        let part: Vec<_> = all.iter().enumerate().filter(|(i, _)| i % 2 == half).map(|(_, t)| t).collect();
        map.extend(part.iter().map(|(n, _)| ((*n).clone(), json!(name))));
        std::fs::write(directory.path().join(name), safetensors_bytes(part, Dtype::F32, bytes_of)).unwrap();
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(directory.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert_same_weights(&open(directory.path()).unwrap());
}

#[test]
fn gguf_means_what_the_directory_means() {
    let directory = tempdir().unwrap();
    write_directory(directory.path());
    for version in [2, 3] {
        let path = directory.path().join("tiny.gguf");
        std::fs::write(&path, GgufBuilder { version, ..GgufBuilder::tiny() }.build()).unwrap();
        let (plain, gguf) = (open(directory.path()).unwrap(), open(&path).unwrap());
        assert_same_weights(&gguf);
        assert_eq!(gguf.architecture(), plain.architecture());
        assert_eq!(gguf.stop_ids(), [2]);
        let template = gguf.chat_template().unwrap();
        assert_eq!((template.source.as_str(), template.bos_token.as_deref()), ("{{ messages }}", Some("<|im_start|>")));
        let tokenizer = gguf.tokenizer().unwrap();
        assert_eq!(tokenizer.encode_fast("<|im_start|>abcd", false).unwrap().get_ids(), [1, 5, 6, 7]);
    }
}

#[test]
fn an_untied_head_is_found_in_gguf() {
    let mut builder = GgufBuilder::tiny();
    let mut head = builder.tensor("token_embd.weight").clone();
    head.0 = "output.weight".into();
    builder.tensors.push(head);
    let directory = tempdir().unwrap();
    let path = directory.path().join("untied.gguf");
    std::fs::write(&path, builder.build()).unwrap();
    let model = open(&path).unwrap();
    assert!(!model.architecture().tied_embeddings);
    assert_eq!(model.tensor_f32("lm_head.weight", &[8, 8]).unwrap(), tensors()["model.embed_tokens.weight"].1);
}

#[test]
fn the_hash_depends_on_content_and_not_on_place() {
    let (a, b) = (tempdir().unwrap(), tempdir().unwrap());
    write_directory(a.path());
    write_directory(b.path());
    std::fs::write(b.path().join("notes.txt"), "not part of the model").unwrap();
    let hash = open(a.path()).unwrap().sha256().unwrap();
    assert_eq!(hash.len(), 64);
    assert_eq!(open(b.path()).unwrap().sha256().unwrap(), hash);
    std::fs::write(b.path().join("generation_config.json"), "{}").unwrap();
    assert_ne!(open(b.path()).unwrap().sha256().unwrap(), hash);

    let bytes = GgufBuilder::tiny().build();
    std::fs::write(a.path().join("one.gguf"), &bytes).unwrap();
    std::fs::write(b.path().join("other.gguf"), &bytes).unwrap();
    let (one, other) = (open(&a.path().join("one.gguf")).unwrap(), open(&b.path().join("other.gguf")).unwrap());
    assert_eq!(one.sha256().unwrap(), other.sha256().unwrap());
    assert_ne!(one.sha256().unwrap(), hash);
}

#[test]
fn chat_templates_and_stop_ids_of_a_directory() {
    let directory = tempdir().unwrap();
    write_directory(directory.path());
    let put = |name: &str, value: &str| std::fs::write(directory.path().join(name), value).unwrap();
    let template = || open(directory.path()).unwrap().chat_template();
    assert_eq!(template(), None);

    let added = json!({"5": {"content": "<end>"}, "6": {"content": "<other>"}});
    let listed = json!([{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]);
    let config = json!({"chat_template": listed, "bos_token": {"content": "<begin>"}, "eos_token": "<end>", "added_tokens_decoder": added});
    put("tokenizer_config.json", &config.to_string());
    let found = template().unwrap();
    assert_eq!((found.source.as_str(), found.pad_token), ("D", None));
    assert_eq!((found.bos_token.as_deref(), found.eos_token.as_deref()), (Some("<begin>"), Some("<end>")));
    put("generation_config.json", r#"{"eos_token_id": [7, 2]}"#);
    assert_eq!(open(directory.path()).unwrap().stop_ids(), [2, 5, 7]);

    put("tokenizer_config.json", r#"{"chat_template": "S"}"#);
    assert_eq!(template().unwrap().source, "S");
    put("chat_template.jinja", "J");
    assert_eq!(template().unwrap().source, "J");
}

/// The tiny configuration with some fields replaced (`null` removes).
fn architecture_of(changes: &Value) -> Result<ballast_basemodel::Architecture, Error> {
    let directory = tempdir().unwrap();
    write_directory(directory.path());
    let mut config = config();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    Ok(open(directory.path())?.architecture().clone())
}

#[test]
fn both_layouts_of_rotary_parameters() {
    let llama3 = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let with = |extra: Value| {
        let mut object = llama3.clone();
        object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        object
    };
    let scaled = RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    for (changes, theta, scaling) in [
        (json!({}), 10_000.0, RotaryScaling::Default),
        (json!({"rope_theta": null}), 10_000.0, RotaryScaling::Default),
        (json!({"rope_theta": 5e5, "rope_scaling": with(json!({"rope_type": "llama3"}))}), 5e5, scaled.clone()),
        (
            json!({"rope_theta": null, "rope_parameters": with(json!({"rope_type": "llama3", "rope_theta": 5e5}))}),
            5e5,
            scaled,
        ),
        (json!({"rope_scaling": {"type": "linear", "factor": 2}}), 10_000.0, RotaryScaling::Linear { factor: 2.0 }),
        (
            json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
            1e5,
            RotaryScaling::Default,
        ),
    ] {
        let architecture = architecture_of(&changes).unwrap();
        assert_eq!((architecture.rope_theta, architecture.rope_scaling), (theta, scaling), "{changes}");
    }
}

#[test]
fn families_differ_by_switches() {
    let mistral = architecture_of(
        &json!({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 32}),
    )
    .unwrap();
    assert_eq!(mistral.sliding_window, Some(32));
    let llama =
        architecture_of(&json!({"sliding_window": 32, "head_dim": 4, "hidden_act": "gelu_pytorch_tanh"})).unwrap();
    assert_eq!((llama.sliding_window, llama.activation), (None, Activation::GeluTanh));
    assert_eq!((llama.norm_epsilon, llama.embedding_scale, llama.head_dim), (1e-5, 1.0, 4));
    // Biases that the configuration asks for must be in the file.
    let missing = |changes| architecture_of(&changes).unwrap_err().to_string();
    assert!(missing(json!({"attention_bias": true})).starts_with("tensor model.layers.0.self_attn.q_proj.bias of "));
    assert!(missing(json!({"mlp_bias": true})).starts_with("tensor model.layers.0.mlp.gate_proj.bias of "));
    assert!(missing(json!({"model_type": "qwen2"})).starts_with("tensor model.layers.0.self_attn.q_proj.bias of "));
    assert!(
        missing(json!({"model_type": "qwen3", "head_dim": 4}))
            .starts_with("tensor model.layers.0.self_attn.q_norm.weight of ")
    );
    assert!(missing(json!({"tie_word_embeddings": false})).starts_with("tensor lm_head.weight of "));
}
