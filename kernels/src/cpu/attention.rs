//! Causal attention over packed sequences, forward.
//!
//! The unit of work is a block of queries of one sequence: it takes every head in turn, and for each meets the keys in
//! blocks with a running softmax (Milakov and Gimelshein, 1805.02867; FlashAttention, 2205.14135). The queries of all
//! heads that share a key head are stacked, so that one product serves them; keys after the block's last query or
//! before its first window are never touched.

use super::CpuBackend;
use super::buffers::{Matrix, PackingTable, Vector};
use super::check;
use super::exp::{exp, ln};
use super::gemm::{MatMut, MatRef, Store, product};
use super::memory::Memory;
use super::simd::{LANES, add_lanes, vectorized};
use crate::contract::{AttentionShape, Result};
use gemm::Parallelism;
use std::ops::Range;
use std::sync::Arc;

/// Keys met at a time.
pub(crate) const KEY_BLOCK: usize = 512;
/// Rows of stacked queries aimed at.
const STACKED_ROWS: usize = 96;

/// Queries of a block, before stacking: a function of the shape alone.
pub(crate) fn query_block(shape: &AttentionShape) -> usize {
    (STACKED_ROWS / (shape.heads / shape.kv_heads)).clamp(8, 64)
}

vectorized! {
    /// The largest element; NaNs are passed over (the exponentials meet them anyway).
    fn row_max(row: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (blocks, rest) = row.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane = if x > *lane { x } else { *lane };
        }
        lanes.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
    }

    /// `row = e^(row - max)`; returns the sum.
    fn exponentials(row: &mut [f32], max: f32) -> f32 {
        let mut lanes = [0.0; LANES];
        let (blocks, rest) = row.as_chunks_mut::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                block[lane] = exp(block[lane] - max);
                lanes[lane] += block[lane];
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *x = exp(*x - max);
            *lane += *x;
        }
        add_lanes(lanes)
    }

    /// `out = x * factor`.
    fn scale_into(x: &[f32], factor: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x * factor;
        }
    }

    /// `x *= factor`.
    fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}

/// Keys and values of one sequence, by position: those of the prefix that it shares with others, then its own.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    shared: usize,
    /// Keys and values `[shared, kv_heads * head_dim]`.
    prefix: [&'a [f32]; 2],
    /// The same from position `shared` on.
    own: [&'a [f32]; 2],
}

impl<'a> Context<'a> {
    /// Of a sequence that shares nothing.
    pub(crate) fn new(keys: &'a [f32], values: &'a [f32]) -> Self {
        Self { shared: 0, prefix: [&[]; 2], own: [keys, values] }
    }

    /// Of the sequence with these rows of packed keys and values, which has `shared` rows in common with the others.
    pub(crate) fn packed(keys: &'a Matrix, values: &'a Matrix, rows: Range<usize>, shared: usize) -> Self {
        let both = [keys, values];
        let stretch = |rows: Range<usize>| both.map(|m| &m.data()[rows.start * m.cols..rows.end * m.cols]);
        Self { shared, prefix: stretch(0..shared), own: stretch(rows) }
    }

    /// Positions in blocks, each within the prefix or behind it.
    pub(crate) fn blocks(&self, positions: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let border = self.shared.clamp(positions.start, positions.end);
        [positions.start..border, border..positions.end]
            .into_iter()
            .flat_map(|part| part.clone().step_by(KEY_BLOCK).map(move |start| start..(start + KEY_BLOCK).min(part.end)))
    }

    /// Keys and values of one of [`Context::blocks`], of head `kv`.
    pub(crate) fn at(&self, block: &Range<usize>, shape: &AttentionShape, kv: usize) -> [MatRef<'a>; 2] {
        let (d, cols) = (shape.head_dim, shape.kv_heads * shape.head_dim);
        let (rows, first) = match block.start < self.shared {
            true => (self.prefix, block.start),
            false => (self.own, block.start - self.shared),
        };
        rows.map(|rows| MatRef::strided(&rows[first * cols + kv * d..], block.len(), d, cols))
    }
}

/// A stretch of one sequence's queries, and what they may see.
pub(crate) struct Tile<'a> {
    /// Queries `[count, heads * head_dim]`, from the block's first row on.
    pub(crate) q: &'a [f32],
    /// Keys and values of the sequence.
    pub(crate) context: Context<'a>,
    /// Position of the first query in the sequence.
    pub(crate) first: usize,
    /// Queries.
    pub(crate) count: usize,
}

/// The keys that the query at `position` sees.
pub(crate) fn visible(shape: &AttentionShape, position: usize) -> Range<usize> {
    let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
    first..position + 1
}

/// Stacks the queries of the heads of group `kv`: row `j * count + i` is `scale *` head `j` of query `i`.
pub(crate) fn stack_queries(shape: &AttentionShape, q: &[f32], count: usize, kv: usize, scale: f32, out: &mut [f32]) {
    let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    for (row, out) in out.chunks_exact_mut(d).enumerate() {
        let (j, i) = (row / count, row % count);
        scale_into(&q[i * shape.heads * d + (kv * group + j) * d..][..d], scale, out);
    }
}

/// Elements of a tile's scratch, of `count` queries that see up to `keys` keys: stacked queries, scores, context and
/// running statistics.
pub(crate) fn scratch(shape: &AttentionShape, count: usize, keys: usize) -> [usize; 4] {
    let rows = shape.heads / shape.kv_heads * count;
    [rows * shape.head_dim, rows * keys.min(KEY_BLOCK), rows * shape.head_dim, rows * 2]
}

/// Attends from the tile's queries. `out: [count, heads * head_dim]`; `log_sum_exp: [count * heads]`, when wanted.
pub(crate) fn attend(
    memory: &Arc<Memory>,
    parallelism: Parallelism,
    shape: &AttentionShape,
    tile: &Tile<'_>,
    out: &mut [f32],
    mut log_sum_exp: Option<&mut [f32]>,
) -> Result<()> {
    let (d, group, count) = (shape.head_dim, shape.heads / shape.kv_heads, tile.count);
    let rows = group * count;
    let keys = visible(shape, tile.first).start..tile.first + count;
    let [of_queries, of_scores, of_context, of_statistics] = scratch(shape, count, keys.len());
    let mut queries = memory.take(of_queries, "attention queries")?;
    let mut scores = memory.take(of_scores, "attention scores")?;
    let mut context = memory.take(of_context, "attention context")?;
    let mut running = memory.take(of_statistics, "attention statistics")?;

    for kv in 0..shape.kv_heads {
        stack_queries(shape, tile.q, count, kv, shape.scale, queries.as_mut_slice());
        let (max, sum) = running.as_mut_slice().split_at_mut(rows);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        for block in tile.context.blocks(keys.clone()) {
            let (start, width) = (block.start, block.len());
            let scores = &mut scores.as_mut_slice()[..rows * width];
            let [keys_block, values_block] = tile.context.at(&block, shape, kv);
            let stacked = MatRef::new(queries.as_slice(), rows, d);
            product(parallelism, MatMut::new(scores, rows, width), Store::Overwrite, 1.0, stacked, keys_block.t());
            for row in 0..rows {
                let seen = visible(shape, tile.first + row % count);
                let scores = &mut scores[row * width..][..width];
                let rescale = soften(scores, start, &seen, &mut max[row], &mut sum[row]);
                if start > keys.start && rescale != 1.0 {
                    scale(&mut context.as_mut_slice()[row * d..][..d], rescale);
                }
            }
            let store = if start == keys.start { Store::Overwrite } else { Store::Add };
            let target = MatMut::new(context.as_mut_slice(), rows, d);
            product(parallelism, target, store, 1.0, MatRef::new(scores, rows, width), values_block);
        }
        for (row, context) in context.as_slice().chunks_exact(d).enumerate() {
            let (head, i) = (kv * group + row / count, row % count);
            scale_into(context, 1.0 / sum[row], &mut out[i * shape.heads * d + head * d..][..d]);
            if let Some(log_sum_exp) = &mut log_sum_exp {
                log_sum_exp[i * shape.heads + head] = (f64::from(max[row]) + ln(f64::from(sum[row]))) as f32;
            }
        }
    }
    Ok(())
}

/// Turns the scores of keys `start..` into exponentials relative to the running maximum, zero outside `seen`, and
/// updates maximum and sum. Returns the factor on what was summed before.
fn soften(scores: &mut [f32], start: usize, seen: &Range<usize>, max: &mut f32, sum: &mut f32) -> f32 {
    let from = seen.start.saturating_sub(start).min(scores.len());
    let to = seen.end.saturating_sub(start).min(scores.len());
    scores[..from].fill(0.0);
    scores[to.max(from)..].fill(0.0);
    if to <= from {
        return 1.0;
    }
    let scores = &mut scores[from..to];
    let block_max = row_max(scores);
    let new_max = if block_max > *max { block_max } else { *max };
    // Nothing seen before: there is nothing to rescale, and infinity minus infinity is to be avoided.
    let rescale = if *max == f32::NEG_INFINITY { 1.0 } else { exp(*max - new_max) };
    *sum = *sum * rescale + exponentials(scores, new_max);
    *max = new_max;
    rescale
}

/// A block of queries with its part of the outputs.
struct Item<'a> {
    context: Context<'a>,
    /// Its first row, and that row's position.
    row: usize,
    first: usize,
    count: usize,
    out: &'a mut [f32],
    log_sum_exp: &'a mut [f32],
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(
    b: &CpuBackend,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    packing: &PackingTable,
    shape: &AttentionShape,
    out: &mut Matrix,
    log_sum_exp: &mut Vector,
) -> Result<()> {
    let (queries, keys) = ([("q", q), ("out", &*out)], [("k", k), ("v", v)]);
    check::attention("attention", shape, packing.tokens(), &queries, &keys, log_sum_exp.len())?;
    let q_cols = q.cols;
    let mut items = Vec::new();
    let (mut out, mut log_sum_exp) = (out.data_mut(), log_sum_exp.data_mut());
    for (sequence, shared) in packing.sequences() {
        let context = Context::packed(k, v, sequence.clone(), shared);
        for row in sequence.clone().step_by(query_block(shape)) {
            let (first, count) = (shared + row - sequence.start, query_block(shape).min(sequence.end - row));
            let (item_out, item_lse);
            (item_out, out) = out.split_at_mut(count * q_cols);
            (item_lse, log_sum_exp) = log_sum_exp.split_at_mut(count * shape.heads);
            items.push(Item { context, row, first, count, out: item_out, log_sum_exp: item_lse });
        }
    }
    // The longest rows first, so that the threads end together.
    items.sort_by_key(|item| std::cmp::Reverse(item.first));
    b.threads.try_for_each(items, |item| {
        let q = &q.data()[item.row * q_cols..(item.row + item.count) * q_cols];
        let tile = Tile { q, context: item.context, first: item.first, count: item.count };
        attend(&b.memory, Parallelism::None, shape, &tile, item.out, Some(item.log_sum_exp))
    })
}
