//! Which of cuBLASLt's algorithms run, as the numerics fingerprint has it.
//!
//! The products of a layer are described where they are made, in [`linear`] and [`head`]; here they are described once
//! more for every frozen layer and every bucket of rows, without operands, and what the heuristic answers is hashed.

use super::blas::{Product, Shape, View};
use super::{CudaBackend, Storage, head, linear};
use crate::contract::Result;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The largest bucket of a layer's rows: 2^17 tokens, beyond any micro-batch that a device holds.
const MOST_ROWS: usize = 1 << 17;

/// A hash of the algorithms for the products of all frozen layers: equal where the heuristic chose equally. That it has
/// none for a product is a choice as well.
pub(super) fn hash(b: &CudaBackend) -> Result<u64> {
    b.device().bind()?;
    let mut hash = DefaultHasher::new();
    for shape in b.blas.shapes() {
        for product in products(shape, b.storage()) {
            b.blas.algorithm(&product)?.hash(&mut hash);
        }
    }
    Ok(hash.finish())
}

/// Every product that a frozen layer can take part in. Which layer is the head is not known: each could be.
fn products(shape: Shape, storage: Storage) -> impl Iterator<Item = Product> {
    // The head sees so many rows at a time.
    let chunk = head::chunk_rows(shape.out, storage);
    let layer = buckets(MOST_ROWS).flat_map(move |rows| as_layer(shape, rows, storage));
    let head = buckets(chunk.next_power_of_two().min(MOST_ROWS))
        .flat_map(move |rows| first_rows(chunk).flat_map(move |first| as_head(shape, rows, storage, first)));
    layer.chain(head)
}

/// First rows of a head's chunks, one for each alignment that the address of a row can have there: that of the n-th chunk
/// depends on how often two divides n.
fn first_rows(chunk: usize) -> impl Iterator<Item = usize> {
    [0].into_iter().chain((0..=View::MOST_ALIGNMENT.ilog2()).map(move |twos| chunk << twos))
}

/// The powers of two up to `most`, which is one.
fn buckets(most: usize) -> impl Iterator<Item = usize> {
    (0..=most.ilog2()).map(|bits| 1 << bits)
}

fn as_layer(shape: Shape, rows: usize, storage: Storage) -> [Product; 2] {
    let Shape { out, inp, bias } = shape;
    let (x, w, y) = (view(rows, inp, storage), view(out, inp, storage), view(rows, out, storage));
    [linear::product(x, w, bias.then_some(0), y), linear::product_back(y, w, false, x)]
}

/// From row `first` on. Logits lie in scratch, or after those of the rows before.
fn as_head(shape: Shape, rows: usize, storage: Storage, first: usize) -> Vec<Product> {
    let Shape { out, inp, bias } = shape;
    let after = |view: View| View { ptr: (first * view.cols * view.storage.bytes()) as u64, ..view };
    let (hidden, w, logits) = (after(view(rows, inp, storage)), view(out, inp, storage), view(rows, out, Storage::F32));
    let forward = [logits, after(logits)].map(|logits| linear::product(hidden, w, bias.then_some(0), logits));
    forward.into_iter().chain(head::products_back(view(rows, out, storage), w, hidden)).collect()
}

/// An address as good as 0: whatever is allocated is aligned to the most that counts.
fn view(rows: usize, cols: usize, storage: Storage) -> View {
    View::new(0, rows, cols, storage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of_heads(shape: Shape, storage: Storage) -> Vec<usize> {
        let heads = products(shape, storage).filter(|product| product.y.storage != product.x.storage);
        heads.map(|product| product.y.rows).collect()
    }

    #[test]
    fn a_head_is_asked_for_no_more_rows_than_a_chunk_has() {
        let shape = Shape { out: 151_936, inp: 896, bias: false };
        let chunk = head::chunk_rows(shape.out, Storage::Bf16);
        let rows = rows_of_heads(shape, Storage::Bf16);
        let distinct: std::collections::BTreeSet<_> = rows.into_iter().collect();
        assert_eq!(distinct, buckets(chunk.next_power_of_two()).collect());
        let layers = products(shape, Storage::F32).map(|product| product.y.rows);
        assert_eq!(layers.max(), Some(MOST_ROWS));
    }

    /// Two whole stretches of 4096 words and a remainder, each with rows as far apart as the vocabulary is wide.
    #[test]
    fn a_gradient_in_stretches_is_described_in_stretches() {
        let shape = Shape { out: 10_000, inp: 64, bias: true };
        let stretches: Vec<_> = as_head(shape, 8, Storage::F32, 0).into_iter().skip(2).collect();
        let inner = stretches.iter().map(|product| (product.x.cols, product.w.rows, product.x.stride));
        assert_eq!(inner.collect::<Vec<_>>(), [(4096, 4096, 10_000), (4096, 4096, 10_000), (1808, 1808, 10_000)]);
        assert_eq!(as_head(shape, 8, Storage::Bf16, 0).len(), 3, "in one");
    }

    /// A model whose rows are no multiple of the alignment: every chunk's products are among the described ones.
    #[test]
    fn later_chunks_are_described_as_they_lie() {
        let shape = Shape { out: 50_257, inp: 20, bias: true };
        for storage in [Storage::F32, Storage::Bf16] {
            let chunk = head::chunk_rows(shape.out, storage);
            let described: Vec<_> = products(shape, storage).map(|product| product.key()).collect();
            for product in (0..1000).flat_map(|number| as_head(shape, chunk, storage, number * chunk)) {
                assert!(described.contains(&product.key()), "{product:?}");
            }
        }
    }
}
