//! Tiny models for tests: one layer, two query heads over one key/value head, eight tokens.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses its own part")]

use ballast_basemodel::{BaseModel, Error, ModelSource};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

pub const HEAD_DIM: usize = 4;

/// A `config.json` for [`tensors`].
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "eos_token_id": 2
    })
}

/// The tensors of the tiny model by Hugging Face name: shape and values, no two alike, all exact in half precision.
pub fn tensors() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let layer = "model.layers.0.";
    let shapes = [
        ("model.embed_tokens.weight".to_owned(), vec![8, 8]),
        ("model.norm.weight".to_owned(), vec![8]),
        (format!("{layer}input_layernorm.weight"), vec![8]),
        (format!("{layer}post_attention_layernorm.weight"), vec![8]),
        (format!("{layer}self_attn.q_proj.weight"), vec![8, 8]),
        (format!("{layer}self_attn.k_proj.weight"), vec![4, 8]),
        (format!("{layer}self_attn.v_proj.weight"), vec![4, 8]),
        (format!("{layer}self_attn.o_proj.weight"), vec![8, 8]),
        (format!("{layer}mlp.gate_proj.weight"), vec![12, 8]),
        (format!("{layer}mlp.up_proj.weight"), vec![12, 8]),
        (format!("{layer}mlp.down_proj.weight"), vec![8, 12]),
    ];
    let mut next = 0;
    let fill = shapes.into_iter().map(|(name, shape)| {
        let count = shape.iter().product();
        let values = (0..count).map(|i| ((next + i) % 255) as f32 / 64.0 - 2.0).collect();
        next += 3 * count;
        (name, (shape, values))
    });
    fill.collect()
}

pub fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A safetensors file of these tensors, stored by `encode`.
pub fn safetensors_bytes<'a>(
    tensors: impl IntoIterator<Item = (&'a String, &'a (Vec<usize>, Vec<f32>))>,
    dtype: Dtype,
    encode: impl Fn(&[f32]) -> Vec<u8>,
) -> Vec<u8> {
    let stored: Vec<_> = tensors.into_iter().map(|(n, (shape, values))| (n, shape.clone(), encode(values))).collect();
    let views = stored.iter().map(|(n, shape, bytes)| (n, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// Writes `config.json` and `model.safetensors`.
pub fn write_directory(directory: &Path) {
    std::fs::write(directory.join("config.json"), config().to_string()).unwrap();
    let bytes = safetensors_bytes(&tensors(), Dtype::F32, bytes_of);
    std::fs::write(directory.join("model.safetensors"), bytes).unwrap();
}

/// Name, dimensions (fastest first), type, data.
pub type GgufTensor = (String, Vec<u64>, u32, Vec<u8>);

/// A GGUF file under construction.
#[derive(Clone)]
pub struct GgufBuilder {
    pub version: u32,
    pub values: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<GgufTensor>,
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

pub fn typed(kind: u32, value: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), value].concat()
}

pub fn u32_value(value: u32) -> Vec<u8> {
    typed(4, &value.to_le_bytes())
}

pub fn f32_value(value: f32) -> Vec<u8> {
    typed(6, &value.to_le_bytes())
}

pub fn string_value(text: &str) -> Vec<u8> {
    typed(8, &string(text))
}

pub fn array_value(kind: u32, items: &[Vec<u8>]) -> Vec<u8> {
    typed(9, &[&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes(), &items.concat()].concat())
}

impl GgufBuilder {
    /// The tiny model in F32, with a byte-level tokenizer of eight tokens.
    pub fn tiny() -> Self {
        let tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "c", "d"];
        let types = [3i32, 3, 3, 1, 1, 1, 1, 1];
        let values = [
            ("general.architecture", string_value("llama")),
            ("llama.embedding_length", u32_value(8)),
            ("llama.feed_forward_length", u32_value(12)),
            ("llama.block_count", u32_value(1)),
            ("llama.context_length", u32_value(64)),
            ("llama.attention.head_count", u32_value(2)),
            ("llama.attention.head_count_kv", u32_value(1)),
            ("llama.attention.layer_norm_rms_epsilon", f32_value(1e-5)),
            ("llama.rope.freq_base", f32_value(10_000.0)),
            ("tokenizer.ggml.model", string_value("gpt2")),
            ("tokenizer.ggml.pre", string_value("smollm")),
            ("tokenizer.ggml.tokens", array_value(8, &tokens.map(string))),
            ("tokenizer.ggml.token_type", array_value(5, &types.map(|t| t.to_le_bytes().to_vec()))),
            ("tokenizer.ggml.merges", array_value(8, &[string("a b")])),
            ("tokenizer.ggml.bos_token_id", u32_value(1)),
            ("tokenizer.ggml.eos_token_id", u32_value(2)),
            ("tokenizer.chat_template", string_value("{{ messages }}")),
        ];
        let tensors = tensors().into_iter().map(|(name, (shape, values))| {
            let values =
                if name.contains("q_proj") || name.contains("k_proj") { interleave(&values, 8) } else { values };
            (gguf_name(&name), shape.iter().rev().map(|&d| d as u64).collect(), 0, bytes_of(&values))
        });
        Self { version: 3, values: values.map(|(k, v)| (k.to_owned(), v)).to_vec(), tensors: tensors.collect() }
    }

    pub fn set(mut self, key: &str, value: Vec<u8>) -> Self {
        self.values.retain(|(k, _)| k != key);
        self.values.push((key.to_owned(), value));
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.values.retain(|(k, _)| k != key);
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut GgufTensor {
        self.tensors.iter_mut().find(|t| t.0 == name).unwrap()
    }

    pub fn build(&self) -> Vec<u8> {
        let offsets = self.tensors.iter().scan(0, |at, t| {
            let offset = *at;
            *at += (t.3.len() as u64).next_multiple_of(32);
            Some(offset)
        });
        self.build_with_offsets(&offsets.collect::<Vec<_>>())
    }

    pub fn build_with_offsets(&self, offsets: &[u64]) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            out.extend(string(key));
            out.extend(value);
        }
        for ((name, dims, kind, _), offset) in self.tensors.iter().zip(offsets) {
            out.extend(string(name));
            out.extend((dims.len() as u32).to_le_bytes());
            out.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        for (_, _, _, data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out
    }
}

/// What llama.cpp's converter does to query and key: `reshape(heads, 2, d / 2, in).swapaxes(1, 2)`.
pub fn interleave<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    let mut out = Vec::new();
    for head in values.chunks(HEAD_DIM * columns) {
        let (first, second) = head.split_at(head.len() / 2);
        for (a, b) in first.chunks(columns).zip(second.chunks(columns)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    out
}

/// llama.cpp's name of a tensor.
pub fn gguf_name(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (theirs, ours) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("lm_head", "output"),
    ] {
        name = name.replace(theirs, ours);
    }
    name
}

/// The error with which opening a model, or what is done with it, ends.
pub fn failure(path: &Path, also: impl Fn(&BaseModel) -> Result<(), Error>) -> Error {
    let opened = ModelSource::parse(path.to_str().unwrap(), None).and_then(|s| s.fetch());
    match opened.and_then(|model| also(&model)) {
        Ok(()) => panic!("{} was accepted", path.display()),
        Err(error) => error,
    }
}

/// Everything that reads something: the tokenizer and all tensors.
pub fn use_it(model: &BaseModel) -> Result<(), Error> {
    model.tokenizer()?;
    tensors().iter().try_for_each(|(name, (shape, _))| model.tensor_f32(name, shape).map(drop))
}
