//! The weights of a base model: which tensor lies where, and how it becomes f32.

use crate::Error;
use crate::encoding::Encoding;
use crate::mapped::MappedFile;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where a tensor lies and how it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    /// Which of the files.
    pub(crate) file: usize,
    /// Bytes of that file, checked to be inside of it and to hold exactly this shape.
    pub(crate) range: Range<usize>,
    /// Row-major, slowest dimension first.
    pub(crate) shape: Vec<usize>,
    /// The stored form.
    pub(crate) encoding: Encoding,
    /// Set where the two rotary halves of each head are stored interleaved (query and key in GGUF).
    pub(crate) interleaved_head: Option<usize>,
}

/// All tensors, by their Hugging Face names.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The files, in the order in which tensors name them.
    pub(crate) files: Vec<MappedFile>,
    /// The tensors.
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
    /// What to name where a tensor is missing: the one file, or the index of shards.
    pub(crate) listing: PathBuf,
}

impl Weights {
    /// The tensor, if it is there, has this shape, and is stored in a form that is read.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<&StoredTensor, Error> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::tensor(&self.listing, name, "is missing"))?;
        let file = self.path_of(tensor);
        if tensor.shape != shape {
            return Err(Error::tensor(file, name, format!("has shape {:?} instead of {shape:?}", tensor.shape)));
        }
        if let Encoding::Other(form) = &tensor.encoding {
            return Err(Error::unsupported(
                format!("tensor {name} of {}", file.display()),
                format!("tensor type {form}"),
            ));
        }
        Ok(tensor)
    }

    /// The tensor as f32, row-major.
    pub(crate) fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let tensor = self.check(name, shape)?;
        let file = self.path_of(tensor);
        let corrupt = || Error::tensor(file, name, "does not fit its place in the file");
        let stored =
            self.files.get(tensor.file).and_then(|f| f.bytes().get(tensor.range.clone())).ok_or_else(corrupt)?;
        let out = decode(tensor, stored).ok_or_else(corrupt)?;
        match out.par_iter().position_first(|x| !x.is_finite()) {
            Some(at) => Err(Error::tensor(file, name, format!("holds {} at element {at}", out[at]))),
            None => Ok(out),
        }
    }

    fn path_of(&self, tensor: &StoredTensor) -> &Path {
        self.files.get(tensor.file).map_or(&self.listing, |f| f.path())
    }
}

/// Decodes whole rows in parallel; `None` where `stored` has not the length that the shape asks for.
fn decode(tensor: &StoredTensor, stored: &[u8]) -> Option<Vec<f32>> {
    let elements = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    // Interleaving moves rows, and in a bias every element is a row.
    let columns = match (tensor.shape.as_slice(), tensor.interleaved_head) {
        ([_], Some(_)) => 1,
        (shape, _) => *shape.last()?,
    };
    let row_bytes = tensor.encoding.bytes(columns)?;
    if columns == 0 || (elements / columns).checked_mul(row_bytes)? != stored.len() {
        return None;
    }
    let mut out = vec![0.0; elements];
    out.par_chunks_mut(columns).enumerate().with_min_len(64).for_each(|(row, out)| {
        let row = tensor.interleaved_head.map_or(row, |head_dim| interleaved_row(row, head_dim));
        // In range: interleaving permutes the rows of a head, and heads are whole by the check of the header.
        if let Some(bytes) = stored.get(row * row_bytes..(row + 1) * row_bytes) {
            tensor.encoding.decode(bytes, out);
        }
    });
    Some(out)
}

/// Where GGUF keeps a row of a query or key projection. Hugging Face rotates channel `i` of a head with channel
/// `i + head_dim / 2`, llama.cpp channel `2i` with `2i + 1`, so its converter interleaves the two halves.
fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, channel) = (row / head_dim, row % head_dim);
    let (half, pair) = (channel / (head_dim / 2), channel % (head_dim / 2));
    head * head_dim + 2 * pair + half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaving_is_undone() {
        // Two heads of four channels: the converter stores each head's rows in the order 0, 2, 1, 3.
        let stored: Vec<u8> = [0f32, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        for shape in [vec![8], vec![8, 1]] {
            let tensor =
                StoredTensor { file: 0, range: 0..32, shape, encoding: Encoding::F32, interleaved_head: Some(4) };
            assert_eq!(decode(&tensor, &stored).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        }
    }
}
