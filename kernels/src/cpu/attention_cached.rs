//! Attention of new tokens to all before them, for decoding.

use super::CpuBackend;
use super::attention::{Context, Tile, attend, query_block};
use super::buffers::Matrix;
use super::check::{attention_shape, ensure, shape as check_matrix};
use super::memory::Block;
use crate::contract::{AttentionShape, Result};
use gemm::Parallelism;

/// Keys and values of one sequence in one layer.
#[derive(Debug)]
pub struct Cache {
    keys: Block,
    values: Block,
    len: usize,
    capacity: usize,
    cols: usize,
}

impl Cache {
    pub(crate) fn new(b: &CpuBackend, capacity: usize, shape: &AttentionShape) -> Result<Self> {
        attention_shape("kv_cache", shape)?;
        let cols = shape.kv_heads * shape.head_dim;
        let keys = b.memory.take(capacity * cols, "a key cache")?;
        let values = b.memory.take(capacity * cols, "a value cache")?;
        Ok(Self { keys, values, len: 0, capacity, cols })
    }

    fn append(&mut self, k: &Matrix, v: &Matrix) {
        let place = self.len * self.cols..(self.len + k.rows) * self.cols;
        self.keys.as_mut_slice()[place.clone()].copy_from_slice(k.data());
        self.values.as_mut_slice()[place].copy_from_slice(v.data());
        self.len += k.rows;
    }
}

pub(crate) fn forward(
    b: &CpuBackend,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    cache: &mut Cache,
    shape: &AttentionShape,
    out: &mut Matrix,
) -> Result<()> {
    attention_shape("attention_cached", shape)?;
    let (rows, q_cols, kv_cols) = (q.rows, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    for (name, matrix, cols) in [("q", q, q_cols), ("k", k, kv_cols), ("v", v, kv_cols), ("out", &*out, q_cols)] {
        check_matrix("attention_cached", name, matrix, rows, cols)?;
    }
    ensure(cache.cols == kv_cols, "attention_cached", || {
        format!("the cache holds rows of {}, the keys have {kv_cols}", cache.cols)
    })?;
    ensure(cache.len + rows <= cache.capacity, "attention_cached", || {
        format!("{rows} more tokens on {} exceed the cache's capacity of {}", cache.len, cache.capacity)
    })?;
    let before = cache.len;
    cache.append(k, v);
    let filled = ..cache.len * kv_cols;
    let context = Context::new(&cache.keys.as_slice()[filled], &cache.values.as_slice()[filled]);
    let block = query_block(shape);
    let items = q.data().chunks(block * q_cols).zip(out.data_mut().chunks_mut(block * q_cols)).enumerate().collect();
    b.threads.try_for_each(items, |(index, (q, out)): (usize, (&[f32], &mut [f32]))| {
        let tile = Tile { q, context, first: before + index * block, count: q.len() / q_cols };
        attend(&b.memory, Parallelism::None, shape, &tile, out, None)
    })
}
