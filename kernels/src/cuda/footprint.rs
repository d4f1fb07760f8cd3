//! What the CUDA backend takes of the device's memory.

use super::{Storage, attention, blas, fixed, head, lora, rows};
use crate::contract::AttentionShape;
use crate::footprint::{Footprint, LowRank};
use crate::free_list::rounded;

/// Sizes of a [`super::CudaBackend`] of this storage type.
///
/// What the driver takes for itself (context, modules) is not among them, nor that it hands out memory in pages of 2
/// MiB.
#[derive(Clone, Copy, Debug)]
pub struct CudaFootprint {
    /// Type of activations and frozen weights.
    pub storage: Storage,
}

impl Footprint for CudaFootprint {
    fn storage(&self) -> usize {
        self.storage.bytes()
    }

    fn has_narrower(&self) -> bool {
        self.storage == Storage::F32
    }

    fn buffer(&self, bytes: usize) -> usize {
        rounded(bytes)
    }

    fn table(&self, bytes: usize) -> usize {
        rounded(bytes)
    }

    fn workspace(&self) -> usize {
        blas::WORKSPACE
    }

    fn bias(&self, out: usize) -> usize {
        rounded(out * size_of::<f32>()) + rounded(out * self.storage.bytes())
    }

    fn packing(&self, tokens: usize, sequences: usize) -> usize {
        [sequences + 1, tokens, tokens, sequences].map(|len| rounded(len * size_of::<u32>())).iter().sum()
    }

    fn segments(&self, elements: usize, segments: usize) -> usize {
        fixed::tables_bytes(elements, segments)
    }

    fn linear(&self, path: &LowRank) -> Vec<usize> {
        lora::forward_scratch(path)
    }

    fn linear_backward(&self, path: &LowRank) -> Vec<usize> {
        lora::backward_scratch(path)
    }

    fn attention(&self, _: usize, _: &AttentionShape) -> Vec<usize> {
        Vec::new()
    }

    fn attention_backward(&self, tokens: usize, shape: &AttentionShape) -> Vec<usize> {
        vec![attention::statistics_bytes(tokens, shape)]
    }

    fn scatter_rows(&self, rows: usize) -> Vec<usize> {
        vec![rows::inverse_bytes(rows)]
    }

    fn cross_entropy(&self, rows: usize, vocab: usize, _: usize) -> Vec<usize> {
        let scratch = head::Scratch::new(rows, vocab, self.storage, true);
        [scratch.logits].into_iter().chain(scratch.gradients).collect()
    }
}
