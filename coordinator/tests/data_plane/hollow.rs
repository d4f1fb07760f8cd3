//! SmolLM2-135M-Instruct without its weights: the metadata that the basemodel crate keeps as a fixture, and tensors that
//! are a hole in the file. All that the data plane asks of a base model is there.

use ballast_basemodel::{BaseModel, ModelSource};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::LazyLock;

/// The model; its tensors are zeros.
pub(crate) fn smollm2() -> &'static BaseModel {
    static MODEL: LazyLock<BaseModel> = LazyLock::new(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        write(&path);
        // The file stays mapped after its name is gone.
        ModelSource::Gguf(path).fetch().unwrap()
    });
    &MODEL
}

fn write(path: &PathBuf) {
    let fixture =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../basemodel/tests/fixtures/smollm2-135m-instruct.gguf.zst");
    let metadata = zstd::decode_all(File::open(&fixture).unwrap()).unwrap();
    let tensors = tensors();
    let mut out = metadata[..end_of_metadata(&metadata)].to_vec();
    out[8..16].copy_from_slice(&(tensors.len() as u64).to_le_bytes());
    let mut offset = 0_u64;
    for (name, shape) in &tensors {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|dimension| out.extend(dimension.to_le_bytes()));
        out.extend(1_u32.to_le_bytes()); // F16
        out.extend(offset.to_le_bytes());
        offset += shape.iter().product::<u64>() * 2;
    }
    let mut file = File::create(path).unwrap();
    file.write_all(&out).unwrap();
    file.set_len((out.len() as u64).next_multiple_of(32) + offset).unwrap();
}

/// Name and shape of every tensor, innermost dimension first; all sizes are multiples of the alignment.
fn tensors() -> Vec<(String, Vec<u64>)> {
    let (hidden, intermediate, kv, vocab) = (576, 1536, 192, 49_152);
    let of_layer = [
        ("attn_norm", vec![hidden]),
        ("attn_q", vec![hidden, hidden]),
        ("attn_k", vec![hidden, kv]),
        ("attn_v", vec![hidden, kv]),
        ("attn_output", vec![hidden, hidden]),
        ("ffn_norm", vec![hidden]),
        ("ffn_gate", vec![hidden, intermediate]),
        ("ffn_up", vec![hidden, intermediate]),
        ("ffn_down", vec![intermediate, hidden]),
    ];
    let layers = (0..30).flat_map(|layer| {
        of_layer.iter().map(move |(name, shape)| (format!("blk.{layer}.{name}.weight"), shape.clone()))
    });
    let outer = [("token_embd.weight", vec![hidden, vocab]), ("output_norm.weight", vec![hidden])];
    outer.map(|(name, shape)| (name.to_owned(), shape)).into_iter().chain(layers).collect()
}

/// Where the key-value pairs of a GGUF file end.
fn end_of_metadata(bytes: &[u8]) -> usize {
    let pairs = u64_at(bytes, 16);
    let mut at = 24;
    for _ in 0..pairs {
        at += 8 + u64_at(bytes, at) as usize;
        let kind = u32_at(bytes, at);
        at = end_of_value(bytes, at + 4, kind);
    }
    at
}

fn end_of_value(bytes: &[u8], at: usize, kind: u32) -> usize {
    match kind {
        0 | 1 | 7 => at + 1,
        2 | 3 => at + 2,
        4..=6 => at + 4,
        8 => at + 8 + u64_at(bytes, at) as usize,
        9 => {
            let kind = u32_at(bytes, at);
            (0..u64_at(bytes, at + 4)).fold(at + 12, |at, _| end_of_value(bytes, at, kind))
        }
        _ => at + 8,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
