//! What the CPU backend takes of memory.

use super::{attention, attention_backward, head, linear, weights};
use crate::Storage;
use crate::contract::AttentionShape;
use crate::footprint::{Footprint, LowRank};
use crate::free_list::rounded;

/// Sizes of a [`super::CpuBackend`] of so many threads.
#[derive(Clone, Copy, Debug)]
pub struct CpuFootprint {
    /// Threads: some scratch is one's own.
    pub threads: usize,
    /// Type of frozen weights.
    pub weights: Storage,
}

impl CpuFootprint {
    /// A stretch of a weight `[out, inp]`, widened.
    fn widened(&self, out: usize, inp: usize) -> Vec<usize> {
        match self.weights {
            Storage::F32 => Vec::new(),
            Storage::Bf16 => vec![bytes(weights::widened(out, inp))],
        }
    }

    /// The scratch of every thread that has a piece of work.
    fn each_thread(&self, pieces: usize, scratch: &[usize]) -> Vec<usize> {
        scratch.repeat(self.threads.min(pieces))
    }
}

/// What takes more of two that are not there at the same time.
fn larger(one: Vec<usize>, other: Vec<usize>) -> Vec<usize> {
    if one.iter().sum::<usize>() > other.iter().sum() { one } else { other }
}

fn bytes(elements: usize) -> usize {
    elements * size_of::<f32>()
}

impl Footprint for CpuFootprint {
    fn storage(&self) -> usize {
        size_of::<f32>()
    }

    fn frozen(&self) -> usize {
        self.weights.bytes()
    }

    fn has_narrower(&self) -> bool {
        self.weights == Storage::F32
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
        let piece = linear::MASKED_ROWS.min(path.rows);
        let masked = if path.drops {
            self.each_thread(path.rows.div_ceil(piece), &[bytes(piece * path.inp)])
        } else {
            Vec::new()
        };
        larger(self.widened(path.out, path.inp), masked)
    }

    fn linear_backward(&self, path: &LowRank) -> Vec<usize> {
        let d_down = bytes(path.rows * path.rank);
        let of_input = self.linear(path);
        let of_a = if path.drops { vec![bytes(linear::GRADIENT_ROWS.min(path.rows) * path.inp)] } else { Vec::new() };
        [vec![d_down], larger(of_a, of_input)].concat()
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

    fn cross_entropy(&self, rows: usize, vocab: usize, hidden: usize) -> Vec<usize> {
        [vec![bytes(head::scratch(rows, vocab))], self.widened(vocab, hidden)].concat()
    }
}
