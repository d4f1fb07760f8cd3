//! What a backend's buffers and operations take of memory: known without a device.

use crate::AttentionShape;
use std::fmt::Debug;

/// Sizes of a backend's memory. Each backend describes its own, beside the code that allocates it.
///
/// All sizes are bytes. What an operation takes while it runs is given as the buffers that it has at once when it has
/// most.
pub trait Footprint: Debug + Send + Sync + 'static {
    /// Bytes of an element of activations.
    fn storage(&self) -> usize;

    /// Bytes of an element of frozen weights.
    fn frozen(&self) -> usize {
        self.storage()
    }

    /// Whether the backend has a narrower storage type too, for weights or for all.
    fn has_narrower(&self) -> bool;

    /// What a matrix of activations or a vector of f32 takes that has `bytes` bytes.
    fn buffer(&self, bytes: usize) -> usize;

    /// What a frozen weight or a vector of integers takes that has `bytes` bytes.
    fn table(&self, bytes: usize) -> usize;

    /// Held from the backend's start to its end.
    fn workspace(&self) -> usize;

    /// Bias of a frozen layer, of `out` elements.
    fn bias(&self, out: usize) -> usize;

    /// Row bounds, positions and samples of packed sequences.
    fn packing(&self, tokens: usize, sequences: usize) -> usize;

    /// What exact sums keep of the segments of a vector of `elements` elements.
    fn segments(&self, elements: usize, segments: usize) -> usize;

    /// [`crate::Backend::linear`] with a low-rank path; with one of rank 0, without any.
    fn linear(&self, path: &LowRank) -> Vec<usize>;

    /// [`crate::Backend::linear_backward`], likewise.
    fn linear_backward(&self, path: &LowRank) -> Vec<usize>;

    /// [`crate::Backend::attention`] over one sequence of `tokens` tokens: no packing of as many takes more.
    fn attention(&self, tokens: usize, shape: &AttentionShape) -> Vec<usize>;

    /// [`crate::Backend::attention_backward`], likewise.
    fn attention_backward(&self, tokens: usize, shape: &AttentionShape) -> Vec<usize>;

    /// [`crate::Backend::scatter_rows`] to a matrix of `rows` rows.
    fn scatter_rows(&self, rows: usize) -> Vec<usize>;

    /// [`crate::Backend::linear_cross_entropy`] with the gradient of `rows` hidden states of so many elements.
    fn cross_entropy(&self, rows: usize, vocab: usize, hidden: usize) -> Vec<usize>;
}

/// A frozen layer `[out, inp]` with a low-rank path, over `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowRank {
    /// Rows of activations.
    pub rows: usize,
    /// Columns that go in.
    pub inp: usize,
    /// Columns that come out.
    pub out: usize,
    /// Rank of the path.
    pub rank: usize,
    /// Whether some of its input is dropped.
    pub drops: bool,
}
