//! Hostile and malformed GGUF files: the exact error that a user sees for each.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use ballast_proto::{Coded, ErrorCode};
use support::{
    GgufBuilder, GgufTensor, array_value, bytes_of, f32_value, failure, string, string_value, typed, u32_value, use_it,
};
use tempfile::tempdir;

use ErrorCode::{ModelMalformed, ModelTensor, ModelUnsupported, Tokenizer};

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
            good.set("general.alignment", u32_value(0)).build(),
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
    let with = |name: &str, change: &dyn Fn(&mut GgufTensor)| {
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
            ModelMalformed,
            "m.gguf: tensor blk.0.ffn_down.weight has rows of 12 elements, no whole number of Q6_K blocks",
        ),
        (
            with(down, &|t| (t.1, t.2) = (vec![96, 8], 12)),
            ModelMalformed,
            "m.gguf: tensor blk.0.ffn_down.weight has rows of 96 elements, no whole number of Q4_K blocks",
        ),
        (
            with(down, &|t| t.2 = 23),
            ModelUnsupported,
            "tensor model.layers.0.mlp.down_proj.weight of m.gguf: tensor type IQ4_XS is not supported",
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
