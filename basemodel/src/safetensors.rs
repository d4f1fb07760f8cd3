//! Safetensors checkpoints: one file, or shards with an index.

use crate::Error;
use crate::encoding::Encoding;
use crate::files;
use crate::mapped::MappedFile;
use crate::weights::{StoredTensor, Weights};
use ::safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The weights of an unsharded checkpoint.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of a sharded one.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Largest header that is believed; a model of some thousands of tensors needs less than 1 MiB.
const MAX_HEADER: u64 = 64 << 20;
/// Most shards that are believed.
const MAX_SHARDS: usize = 4096;

/// Opens the checkpoint in a directory: the index with its shards where there is one, else the single file.
pub(crate) fn open(directory: &Path) -> Result<Weights, Error> {
    let index_path = directory.join(INDEX);
    match files::read(&index_path, files::INDEX_LIMIT)? {
        Some(bytes) => open_shards(directory, &index_path, &parse_index(&bytes, &index_path)?),
        None => open_single(&directory.join(SINGLE)),
    }
}

fn open_single(path: &Path) -> Result<Weights, Error> {
    let file = MappedFile::open(path)?;
    let tensors = read_header(file.bytes(), path, 0)?;
    Ok(Weights { files: vec![file], tensors, listing: path.to_owned() })
}

fn open_shards(directory: &Path, index_path: &Path, index: &BTreeMap<String, String>) -> Result<Weights, Error> {
    let names: BTreeSet<&str> = index.values().map(String::as_str).collect();
    let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
    for (number, name) in names.into_iter().enumerate() {
        let file = MappedFile::open(&directory.join(name))?;
        for (tensor, stored) in read_header(file.bytes(), file.path(), number)? {
            // The index decides; a shard may hold more than it says.
            if index.get(&tensor).is_some_and(|shard| shard == name) {
                tensors.insert(tensor, stored);
            }
        }
        files.push(file);
    }
    if let Some((tensor, shard)) = index.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
        return Err(Error::tensor(index_path, tensor, format!("is not in {shard}, where the index has it")));
    }
    Ok(Weights { files, tensors, listing: index_path.to_owned() })
}

/// Tensor name to shard file name; file names are checked to stay in the model's directory.
pub(crate) fn parse_index(bytes: &[u8], path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let malformed = |what: String| Error::malformed(path, what);
    let index: Value = serde_json::from_slice(bytes).map_err(|e| malformed(format!("is not JSON: {e}")))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed("has no object weight_map".into()))?;
    let mut index = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().filter(|s| is_plain_shard_name(s));
        let shard = shard.ok_or_else(|| {
            malformed(format!("weight_map of {tensor} is not the name of a .safetensors file beside it"))
        })?;
        index.insert(tensor.clone(), shard.to_owned());
    }
    let shards = index.values().collect::<BTreeSet<_>>().len();
    if shards == 0 || shards > MAX_SHARDS {
        return Err(malformed(format!("names {shards} shards; 1 to {MAX_SHARDS} are allowed")));
    }
    Ok(index)
}

fn is_plain_shard_name(name: &str) -> bool {
    name.ends_with(".safetensors")
        && name.len() <= 255
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

fn read_header(bytes: &[u8], path: &Path, file: usize) -> Result<BTreeMap<String, StoredTensor>, Error> {
    let length = bytes.first_chunk().map(|b| u64::from_le_bytes(*b));
    if let Some(length) = length.filter(|&n| n > MAX_HEADER) {
        return Err(Error::malformed(
            path,
            format!("claims a header of {length} bytes; at most {MAX_HEADER} are allowed"),
        ));
    }
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| Error::malformed(path, explain(&e)))?;
    let data_start = 8 + header;
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let stored = StoredTensor {
            file,
            range: data_start + start..data_start + end,
            shape: info.shape.clone(),
            encoding: encoding(info.dtype),
            interleaved_head: None,
        };
        (name, stored)
    });
    Ok(tensors.collect())
}

fn encoding(dtype: Dtype) -> Encoding {
    match dtype {
        Dtype::F32 => Encoding::F32,
        Dtype::F16 => Encoding::F16,
        Dtype::BF16 => Encoding::Bf16,
        other => Encoding::Other(format!("{other:?}")),
    }
}

/// The library's errors in our words: what is wrong with the file, and the likely reason.
fn explain(error: &::safetensors::SafeTensorError) -> String {
    use ::safetensors::SafeTensorError as E;
    match error {
        E::HeaderTooSmall | E::InvalidHeaderLength => "ends within its header: is it truncated?".into(),
        E::MetadataIncompleteBuffer => "has not the length that its header asks for: is it truncated?".into(),
        E::InvalidHeader(_) => "has a header that is not UTF-8".into(),
        E::InvalidHeaderDeserialization(e) => format!("has a header that is not valid: {e}"),
        E::InvalidOffset(name) => format!("tensor {name} has offsets that overlap, leave a gap or run backwards"),
        E::TensorInvalidInfo => "has a tensor whose offsets do not fit its shape and type".into(),
        E::ValidationOverflow => "has a tensor whose size overflows".into(),
        other => format!("is not valid: {other}"),
    }
}
