//! A GGUF file whose tensors are in ggml's block formats, mixed as llama.cpp's quantizer mixes them. How a block decodes
//! is the affair of unit tests; here every block holds one number, and which block goes where is tested.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use ballast_basemodel::ModelSource;
use ballast_proto::{Coded, ErrorCode};
use std::path::PathBuf;
use support::{GgufBuilder, GgufTensor, failure, gguf_name, interleave, u32_value};
use tempfile::{TempDir, tempdir};

const F32: u32 = 0;
const Q5_0: u32 = 6;
const Q5_1: u32 = 7;
const Q2_K: u32 = 10;
const Q3_K: u32 = 11;
const Q4_K: u32 = 12;
const Q5_K: u32 = 13;
const Q6_K: u32 = 14;

/// Name, shape and format. Rows of fewer than 256 weights have no K format, so the quantizer falls back to another.
const TENSORS: [(&str, &[usize], u32); 12] = [
    ("model.embed_tokens.weight", &[8, 512], Q6_K),
    ("model.norm.weight", &[512], F32),
    ("lm_head.weight", &[8, 512], Q5_1),
    ("model.layers.0.input_layernorm.weight", &[512], F32),
    ("model.layers.0.post_attention_layernorm.weight", &[512], F32),
    ("model.layers.0.self_attn.q_proj.weight", &[8, 512], Q4_K),
    ("model.layers.0.self_attn.k_proj.weight", &[4, 512], Q3_K),
    ("model.layers.0.self_attn.v_proj.weight", &[4, 512], Q5_K),
    ("model.layers.0.self_attn.o_proj.weight", &[512, 8], F32),
    ("model.layers.0.mlp.gate_proj.weight", &[32, 512], Q2_K),
    ("model.layers.0.mlp.up_proj.weight", &[32, 512], Q6_K),
    ("model.layers.0.mlp.down_proj.weight", &[512, 32], Q5_0),
];

/// How many weights a block has, and its bytes if all of them are `value`, of 0 to 3.
fn block(format: u32, value: u8) -> (usize, Vec<u8>) {
    const ONE: &[u8] = &[0x00, 0x3c];
    const ZERO: &[u8] = &[0, 0];
    // Eight scales of 1, eight minima of 0.
    const SCALES: &[u8] = &[1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1];
    let (pairs, nibbles) = ([0x55 * value; 64], [0x11 * value; 128]);
    match format {
        F32 => (1, f32::from(value).to_le_bytes().to_vec()),
        Q5_0 => (32, [ONE, &[0xff; 4], &nibbles[..16]].concat()),
        Q5_1 => (32, [ONE, ZERO, &[0; 4], &nibbles[..16]].concat()),
        Q2_K => (256, [&[1; 16], &pairs[..], ONE, ZERO].concat()),
        Q3_K => (256, [&[0xff; 32], &pairs[..], &[0x11; 8], &[0xaa; 4], ONE].concat()),
        Q4_K => (256, [ONE, ZERO, SCALES, &nibbles].concat()),
        Q5_K => (256, [ONE, ZERO, SCALES, &[0; 32], &nibbles].concat()),
        Q6_K => (256, [&nibbles[..], &[0xaa; 64], &[1; 16], ONE].concat()),
        other => panic!("no block of format {other}"),
    }
}

/// The values of a tensor's blocks, in order.
fn block_values(shape: &[usize], format: u32) -> impl Iterator<Item = u8> {
    let (columns, rows) = (shape[shape.len() - 1], shape[..shape.len() - 1].iter().product::<usize>());
    let (weights, _) = block(format, 0);
    (0..rows).flat_map(move |row| (0..columns / weights).map(move |place| ((row + place) % 4) as u8))
}

fn stored((name, shape, format): (&str, &[usize], u32)) -> GgufTensor {
    let bytes: Vec<u8> = block_values(shape, format).flat_map(|value| block(format, value).1).collect();
    let row = bytes.len() / shape[0];
    let bytes = if name.contains("q_proj") || name.contains("k_proj") { interleave(&bytes, row) } else { bytes };
    (gguf_name(name), shape.iter().rev().map(|&d| d as u64).collect(), format, bytes)
}

fn mixed() -> GgufBuilder {
    let sizes = [("embedding_length", 512), ("feed_forward_length", 32), ("attention.key_length", 4)];
    let tiny = GgufBuilder::tiny();
    let wide = sizes.into_iter().fold(tiny, |b, (key, size)| b.set(&format!("llama.{key}"), u32_value(size)));
    GgufBuilder { tensors: TENSORS.map(stored).to_vec(), ..wide }
}

fn write(bytes: &[u8]) -> (TempDir, PathBuf) {
    let directory = tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}

#[test]
fn every_block_finds_its_place() {
    let (_directory, path) = write(&mixed().build());
    let model = ModelSource::Gguf(path).fetch().unwrap();
    assert_eq!(model.tensor_names().len(), TENSORS.len());
    for (name, shape, format) in TENSORS {
        let expected: Vec<f32> =
            block_values(shape, format).flat_map(|value| vec![f32::from(value); block(format, 0).0]).collect();
        assert_eq!(model.tensor_f32(name, shape).unwrap(), expected, "{name}");
    }
}

#[test]
fn a_truncated_super_block() {
    let bytes = GgufBuilder { tensors: TENSORS[..1].iter().map(|&t| stored(t)).collect(), ..mixed() }.build();
    let (_directory, path) = write(&bytes[..bytes.len() - 1]);
    let error = failure(&path, |_| Ok(()));
    let (wanted, present) = (bytes.len(), bytes.len() - 1);
    let what = format!("ends at byte {wanted}, but the file has only {present}: is it truncated?");
    assert_eq!(error.to_string(), format!("{}: tensor token_embd.weight {what}", path.display()));
    assert_eq!(error.code(), ErrorCode::ModelMalformed);
}

#[test]
fn an_infinite_scale() {
    let mut builder = mixed();
    // The second block of the first row; its scale is its last two bytes.
    builder.tensor("token_embd.weight").3[418..420].copy_from_slice(&[0x00, 0x7c]);
    let (_directory, path) = write(&builder.build());
    let (name, shape, _) = TENSORS[0];
    let error = failure(&path, |model| model.tensor_f32(name, shape).map(drop));
    assert_eq!(error.to_string(), format!("tensor {name} of {}: holds inf at element 256", path.display()));
    assert_eq!(error.code(), ErrorCode::ModelTensor);
}
