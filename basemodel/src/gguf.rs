//! The GGUF container, versions 2 and 3: metadata, tensor directory, data.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Nothing in a file is believed: every count and
//! length is held against the bytes that are left before anything is allocated.

mod metadata;
mod names;
mod reader;

pub(crate) use metadata::Metadata;

use crate::encoding::Encoding;
use crate::mapped::MappedFile;
use crate::weights::{StoredTensor, Weights};
use crate::{Architecture, Error};
use reader::Reader;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

/// Most metadata keys and most tensors that are believed: real models have some hundreds of either.
const MAX_ENTRIES: u64 = 1 << 17;
/// Bytes of the smallest metadata entry: key length, type, one byte.
const MIN_VALUE: u64 = 13;
/// Bytes of the smallest tensor entry: name length, dimension count, one dimension, type, offset.
const MIN_TENSOR: u64 = 32;
/// Where the data begins is a multiple of this unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: usize = 32;

/// The header of a GGUF file.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// The key-value part.
    pub(crate) metadata: Metadata,
    /// Tensors by llama.cpp's names.
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

/// One entry of the tensor directory.
#[derive(Debug)]
pub(crate) struct TensorInfo {
    /// Row-major, slowest dimension first (the file has it the other way round).
    pub(crate) shape: Vec<usize>,
    pub(crate) encoding: Encoding,
    /// Bytes of the file; empty for a form that is not read.
    pub(crate) range: Range<usize>,
}

impl Gguf {
    /// Reads and checks the header of a file whose bytes are these; `file` is only named in errors.
    pub(crate) fn parse(bytes: &[u8], file: &Path) -> Result<Self, Error> {
        let malformed = |what: String| Error::malformed(file, what);
        let mut reader = Reader::new(bytes);
        let (tensors, values) = counts(&mut reader).map_err(malformed)?;
        let metadata = Metadata::new(file, read_metadata(&mut reader, values).map_err(malformed)?);
        let entries = read_entries(&mut reader, tensors).map_err(malformed)?;
        let alignment = alignment(&metadata)?;
        let data_start = reader.position().checked_next_multiple_of(alignment);
        let data_start = data_start.ok_or_else(|| malformed("has no place for its data".into()))?;
        let tensors = place(entries, data_start, alignment, bytes.len()).map_err(malformed)?;
        Ok(Self { metadata, tensors })
    }
}

/// Magic, version and the two counts.
fn counts(reader: &mut Reader<'_>) -> Result<(u64, u64), String> {
    if reader.take(4).ok() != Some(b"GGUF") {
        return Err("is not a GGUF file (it does not begin with the letters GGUF)".into());
    }
    match reader.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err("is a big-endian GGUF file; only little-endian is read".into());
        }
        version => return Err(format!("has GGUF version {version}; versions 2 and 3 are read")),
    }
    let (tensors, values) = (reader.u64()?, reader.u64()?);
    for (count, unit, what) in [(tensors, MIN_TENSOR, "tensors"), (values, MIN_VALUE, "metadata keys")] {
        if count > MAX_ENTRIES || count * unit > reader.left() as u64 {
            return Err(format!("claims {count} {what}, more than it can hold"));
        }
    }
    Ok((tensors, values))
}

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<HashMap<String, metadata::Value>, String> {
    let mut values = HashMap::new();
    for _ in 0..count {
        let key = reader.key()?;
        let value = reader.value().map_err(|what| format!("{what} (metadata key {key})"))?;
        if values.insert(key.clone(), value).is_some() {
            return Err(format!("has the metadata key {key} twice"));
        }
    }
    Ok(values)
}

fn alignment(metadata: &Metadata) -> Result<usize, Error> {
    let alignment = metadata.size("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
        let what = format!("general.alignment is {alignment}; a power of two from 8 to 1048576 is allowed");
        return Err(Error::malformed(metadata.file(), what));
    }
    Ok(alignment)
}

/// A tensor entry as it stands in the file.
struct Entry {
    name: String,
    shape: Vec<usize>,
    encoding: Encoding,
    offset: u64,
}

fn read_entries(reader: &mut Reader<'_>, count: u64) -> Result<Vec<Entry>, String> {
    (0..count)
        .map(|_| {
            let name = reader.tensor_name()?;
            let dimensions = reader.u32()?;
            if !(1..=4).contains(&dimensions) {
                return Err(format!("tensor {name} has {dimensions} dimensions; 1 to 4 are allowed"));
            }
            let mut shape = Vec::new();
            for _ in 0..dimensions {
                let length = reader.u64()?;
                let length = usize::try_from(length).ok().filter(|&n| n > 0);
                shape.push(length.ok_or_else(|| format!("tensor {name} has a dimension of length 0 or too large"))?);
            }
            shape.reverse();
            Ok(Entry { name, shape, encoding: encoding(reader.u32()?), offset: reader.u64()? })
        })
        .collect()
}

/// ggml's numbering of tensor types.
fn encoding(kind: u32) -> Encoding {
    let other = match kind {
        0 => return Encoding::F32,
        1 => return Encoding::F16,
        2 => return Encoding::Q4_0,
        3 => return Encoding::Q4_1,
        6 => return Encoding::Q5_0,
        7 => return Encoding::Q5_1,
        8 => return Encoding::Q8_0,
        10 => return Encoding::Q2_K,
        11 => return Encoding::Q3_K,
        12 => return Encoding::Q4_K,
        13 => return Encoding::Q5_K,
        14 => return Encoding::Q6_K,
        30 => return Encoding::Bf16,
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        unknown => return Encoding::Other(format!("number {unknown}")),
    };
    Encoding::Other(other.to_owned())
}

/// Turns offsets into ranges of the file and checks that they lie in it, aligned, whole and apart.
fn place(
    entries: Vec<Entry>,
    data_start: usize,
    alignment: usize,
    file_length: usize,
) -> Result<BTreeMap<String, TensorInfo>, String> {
    let mut tensors = BTreeMap::new();
    for Entry { name, shape, encoding, offset } in entries {
        let range = if let Encoding::Other(_) = encoding {
            0..0
        } else {
            range(&shape, &encoding, offset, data_start, alignment, file_length)
                .map_err(|what| format!("tensor {name} {what}"))?
        };
        if tensors.insert(name.clone(), TensorInfo { shape, encoding, range }).is_some() {
            return Err(format!("has the tensor {name} twice"));
        }
    }
    let mut placed: Vec<_> = tensors.iter().filter(|(_, t)| !t.range.is_empty()).collect();
    placed.sort_by_key(|(_, t)| t.range.start);
    match placed.windows(2).find(|pair| pair[0].1.range.end > pair[1].1.range.start) {
        Some(pair) => Err(format!("tensors {} and {} overlap", pair[0].0, pair[1].0)),
        None => Ok(tensors),
    }
}

fn range(
    shape: &[usize],
    encoding: &Encoding,
    offset: u64,
    data_start: usize,
    alignment: usize,
    file_length: usize,
) -> Result<Range<usize>, String> {
    let too_large = || format!("of shape {shape:?} is too large");
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(too_large)?;
    let row = shape.last().copied().unwrap_or(1);
    if encoding.bytes(row).is_none() {
        return Err(format!("has rows of {row} elements, no whole number of {encoding:?} blocks"));
    }
    let length = encoding.bytes(elements).ok_or_else(too_large)?;
    let offset = usize::try_from(offset).map_err(|_| too_large())?;
    if !offset.is_multiple_of(alignment) {
        return Err(format!("begins at offset {offset}, which is not a multiple of {alignment}"));
    }
    let start = data_start.checked_add(offset).ok_or_else(too_large)?;
    let end = start.checked_add(length).ok_or_else(too_large)?;
    if end > file_length {
        return Err(format!("ends at byte {end}, but the file has only {file_length}: is it truncated?"));
    }
    Ok(start..end)
}

/// The weights of a llama GGUF file under their Hugging Face names.
pub(crate) fn weights(file: MappedFile, gguf: Gguf, architecture: &Architecture) -> Weights {
    let listing = file.path().to_owned();
    let tensors = gguf.tensors.into_iter().filter_map(|(name, info)| {
        let name = names::hugging_face(&name)?;
        let interleaved_head = names::is_interleaved(&name).then_some(architecture.head_dim);
        let TensorInfo { shape, encoding, range } = info;
        Some((name, StoredTensor { file: 0, range, shape, encoding, interleaved_head }))
    });
    Weights { tensors: tensors.collect(), files: vec![file], listing }
}
