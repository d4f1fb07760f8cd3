//! What the CPU backend takes of memory.

use super::{attention, attention_backward, head, linear};
use crate::contract::AttentionShape;
use crate::footprint::{Footprint, LowRank};
use crate::free_list::rounded;

/// Sizes of a [`super::CpuBackend`] of so many threads.
#[derive(Clone, Copy, Debug)]
pub struct CpuFootprint {
    /// Threads: some scratch is one's own.
    pub threads: usize,
}

impl CpuFootprint {
    /// The scratch of every thread that has a piece of work.
    fn each_thread(&self, pieces: usize, scratch: &[usize]) -> Vec<usize> {
        scratch.repeat(self.threads.min(pieces))
    }
}

fn bytes(elements: usize) -> usize {
    elements * size_of::<f32>()
}

impl Footprint for CpuFootprint {
    fn storage(&self) -> usize {
        size_of::<f32>()
    }

    fn has_narrower(&self) -> bool {
        false
    }

    fn buffer(&self, bytes: usize) -> usize {
        rounded(bytes)
    }

    fn table(&self, bytes: usize) -> usize {
        bytes
    }

    fn workspace(&self) -> usize {
        0
    }

    fn bias(&self, out: usize) -> usize {
        bytes(out)
    }

    fn packing(&self, tokens: usize, sequences: usize) -> usize {
        (sequences + 1) * size_of::<usize>() + tokens * (size_of::<u32>() + size_of::<u64>())
    }

    fn segments(&self, _: usize, _: usize) -> usize {
        0
    }

    fn linear(&self, path: &LowRank) -> Vec<usize> {
        if !path.drops {
            return Vec::new();
        }
        let piece = linear::MASKED_ROWS.min(path.rows);
        self.each_thread(path.rows.div_ceil(piece), &[bytes(piece * path.inp)])
    }

    fn linear_backward(&self, path: &LowRank) -> Vec<usize> {
        let d_down = bytes(path.rows * path.rank);
        let of_input = self.linear(path);
        let of_a = if path.drops { vec![bytes(linear::GRADIENT_ROWS.min(path.rows) * path.inp)] } else { Vec::new() };
        let sum = |scratch: &[usize]| scratch.iter().sum::<usize>();
        let larger = if sum(&of_a) > sum(&of_input) { of_a } else { of_input };
        [vec![d_down], larger].concat()
    }

    fn attention(&self, tokens: usize, shape: &AttentionShape) -> Vec<usize> {
        let block = attention::query_block(shape).min(tokens);
        self.each_thread(tokens.div_ceil(block), &attention::scratch(shape, block, tokens).map(bytes))
    }

    fn attention_backward(&self, tokens: usize, shape: &AttentionShape) -> Vec<usize> {
        // Shorter sequences make more pieces, of less scratch.
        self.each_thread(usize::MAX, &attention_backward::scratch(shape, tokens).map(bytes))
    }

    fn scatter_rows(&self, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn cross_entropy(&self, rows: usize, vocab: usize) -> Vec<usize> {
        vec![bytes(head::scratch(rows, vocab))]
    }
}
