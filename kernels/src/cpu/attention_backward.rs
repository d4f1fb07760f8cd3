//! Causal attention over packed sequences, backward.
//!
//! Probabilities are recomputed from the saved log-sum-exp (FlashAttention, 2205.14135, section 3.1). The unit of work
//! is one key head of one sequence: it alone writes that head's gradients, meeting the query blocks in order, so the
//! sums have one order whatever the number of threads. What sequences owe to a prefix that they share is kept apart and
//! added up in their order.

use super::CpuBackend;
use super::attention::{Context, KEY_BLOCK, query_block, stack_queries, visible};
use super::buffers::{Matrix, PackingTable, Vector};
use super::check;
use super::exp::exp;
use super::gemm::{MatMut, MatRef, Store, product};
use super::memory::Block;
use super::rows::add_into;
use super::simd::{dot, vectorized};
use crate::contract::{AttentionShape, Result};
use gemm::Parallelism;
use std::ops::Range;

vectorized! {
    /// `p = e^(s - lse)` in place of the scores, and `ds = p (dp - delta)` in place of `dp`.
    fn probabilities_and_score_gradients(scores: &mut [f32], d_p: &mut [f32], log_sum_exp: f32, delta: f32) {
        for (score, d_p) in scores.iter_mut().zip(d_p) {
            let p = exp(*score - log_sum_exp);
            *score = p;
            *d_p = p * (*d_p - delta);
        }
    }
}

/// What a backward call reads.
struct Inputs<'a> {
    shape: &'a AttentionShape,
    d_out: &'a [f32],
    q: &'a [f32],
    out: &'a [f32],
    log_sum_exp: &'a [f32],
}

/// One key head of one sequence, and the rows of the gradients that are its own.
struct Item<'a> {
    sequence: Range<usize>,
    /// Positions before its rows.
    shared: usize,
    context: Context<'a>,
    kv: usize,
    /// `d_q[j]`: the rows of the group's head `j`.
    d_q: Vec<Vec<&'a mut [f32]>>,
    d_k: Vec<&'a mut [f32]>,
    d_v: Vec<&'a mut [f32]>,
    /// What it owes to keys and values of the shared prefix, `[2, shared, head_dim]`.
    d_prefix: &'a mut [f32],
}

/// The rows of every head, per sequence: `[sequence][head][row]`.
fn split_heads<'a>(matrix: &'a mut Matrix, packing: &PackingTable, head_dim: usize) -> Vec<Vec<Vec<&'a mut [f32]>>> {
    let (cols, heads) = (matrix.cols, matrix.cols / head_dim);
    let mut rows = matrix.data_mut().chunks_exact_mut(cols);
    packing
        .bounds
        .windows(2)
        .map(|bounds| {
            let length = bounds[1] - bounds[0];
            let mut by_head: Vec<Vec<&mut [f32]>> = (0..heads).map(|_| Vec::with_capacity(length)).collect();
            for row in rows.by_ref().take(length) {
                by_head.iter_mut().zip(row.chunks_exact_mut(head_dim)).for_each(|(head, part)| head.push(part));
            }
            by_head
        })
        .collect()
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    b: &CpuBackend,
    d_out: &Matrix,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    out: &Matrix,
    log_sum_exp: &Vector,
    packing: &PackingTable,
    shape: &AttentionShape,
    d_q: &mut Matrix,
    d_k: &mut Matrix,
    d_v: &mut Matrix,
) -> Result<()> {
    let queries = [("d_out", d_out), ("q", q), ("out", out), ("d_q", &*d_q)];
    let keys = [("k", k), ("v", v), ("d_k", &*d_k), ("d_v", &*d_v)];
    check::attention("attention_backward", shape, packing.tokens(), &queries, &keys, log_sum_exp.len())?;
    let inputs = Inputs { shape, d_out: d_out.data(), q: q.data(), out: out.data(), log_sum_exp: log_sum_exp.data() };
    let group = shape.heads / shape.kv_heads;
    let of_head = 2 * packing.shared * shape.head_dim;
    let of_sharing = packing.sequences().filter(|(_, shared)| *shared > 0).count() * shape.kv_heads * of_head;
    let mut d_prefixes =
        (of_sharing > 0).then(|| b.memory.take(of_sharing, "gradients of a shared prefix")).transpose()?;
    let mut rest = d_prefixes.as_mut().map_or(&mut [][..], Block::as_mut_slice);
    let mut items = Vec::new();
    let by_sequence = split_heads(d_q, packing, shape.head_dim)
        .into_iter()
        .zip(split_heads(d_k, packing, shape.head_dim).into_iter().zip(split_heads(d_v, packing, shape.head_dim)));
    for ((sequence, shared), (d_q, (d_k, d_v))) in packing.sequences().zip(by_sequence) {
        let context = Context::packed(k, v, sequence.clone(), shared);
        let mut d_q = d_q.into_iter();
        for (kv, (d_k, d_v)) in d_k.into_iter().zip(d_v).enumerate() {
            let d_prefix;
            (d_prefix, rest) = rest.split_at_mut(2 * shared * shape.head_dim);
            let d_q = d_q.by_ref().take(group).collect();
            items.push(Item { sequence: sequence.clone(), shared, context, kv, d_q, d_k, d_v, d_prefix });
        }
    }
    items.sort_by_key(|item| std::cmp::Reverse(item.sequence.len()));
    // With fewer items than threads, the products inside share out their tiles instead; the bits are the same.
    let few = items.len() < b.threads.count();
    b.threads.with_parallelism(|all| {
        let parallelism = if few { all } else { Parallelism::None };
        b.threads.try_for_each(items, |item| one_head(b, parallelism, &inputs, item))
    })?;
    if let Some(d_prefixes) = &d_prefixes {
        add_to_prefix(d_prefixes.as_slice(), packing.shared, shape, [d_k, d_v]);
    }
    Ok(())
}

/// Adds what the sequences owe to the prefix, `[sequences, kv_heads, 2, shared, head_dim]`, to its rows, in order.
fn add_to_prefix(d_prefixes: &[f32], shared: usize, shape: &AttentionShape, to: [&mut Matrix; 2]) {
    let (d, kv_heads) = (shape.head_dim, shape.kv_heads);
    let [d_k, d_v] = to.map(Matrix::data_mut);
    for (number, d_prefix) in d_prefixes.chunks_exact(2 * shared * d).enumerate() {
        let kv = number % kv_heads;
        let (of_keys, of_values) = d_prefix.split_at(shared * d);
        for (gradient, part) in [(&mut *d_k, of_keys), (&mut *d_v, of_values)] {
            for (row, part) in gradient.chunks_exact_mut(kv_heads * d).zip(part.chunks_exact(d)) {
                add_into(&mut row[kv * d..][..d], part);
            }
        }
    }
}

/// Elements of the scratch of one key head of a sequence of `length` rows: queries, gradients of context and queries,
/// scores, their gradients, deltas, and the gradients of keys and values.
pub(crate) fn scratch(shape: &AttentionShape, length: usize) -> [usize; 8] {
    let rows = shape.heads / shape.kv_heads * query_block(shape).min(length);
    let (of_queries, of_scores) = (rows * shape.head_dim, rows * length.min(KEY_BLOCK));
    let of_keys = length * shape.head_dim;
    [of_queries, of_queries, of_queries, of_scores, of_scores, rows, of_keys, of_keys]
}

fn one_head(b: &CpuBackend, parallelism: Parallelism, inputs: &Inputs<'_>, mut item: Item<'_>) -> Result<()> {
    let shape = inputs.shape;
    let (d, group, shared) = (shape.head_dim, shape.heads / shape.kv_heads, item.shared);
    let (q_cols, length) = (shape.heads * d, shared + item.sequence.len());
    let most = query_block(shape).min(length);
    let [of_queries, of_d_context, of_d_queries, of_scores, of_d_scores, of_deltas, of_d_k, of_d_v] =
        scratch(shape, length);
    let take = |len| b.memory.take(len, "attention gradients");
    let (mut queries, mut d_context, mut d_queries) = (take(of_queries)?, take(of_d_context)?, take(of_d_queries)?);
    let (mut scores, mut d_scores) = (take(of_scores)?, take(of_d_scores)?);
    let mut deltas = take(of_deltas)?;
    let mut d_k = b.memory.take_zeros(of_d_k, "attention gradients")?;
    let mut d_v = b.memory.take_zeros(of_d_v, "attention gradients")?;

    for first in (shared..length).step_by(most) {
        let count = most.min(length - first);
        let rows = group * count;
        let row = item.sequence.start + first - shared;
        let block = row * q_cols..(row + count) * q_cols;
        stack_queries(
            shape,
            &inputs.q[block.clone()],
            count,
            item.kv,
            shape.scale,
            &mut queries.as_mut_slice()[..rows * d],
        );
        stack_queries(shape, &inputs.d_out[block], count, item.kv, 1.0, &mut d_context.as_mut_slice()[..rows * d]);
        let stacked = MatRef::new(queries.as_slice(), rows, d);
        let d_stacked = MatRef::new(d_context.as_slice(), rows, d);
        let head_of = |stacked_row: usize| item.kv * group + stacked_row / count;
        for (stacked_row, delta) in deltas.as_mut_slice()[..rows].iter_mut().enumerate() {
            let start = (row + stacked_row % count) * q_cols + head_of(stacked_row) * d;
            *delta = dot(&inputs.d_out[start..start + d], &inputs.out[start..start + d]);
        }

        let keys = visible(shape, first).start..first + count;
        for block in item.context.blocks(keys.clone()) {
            let (start, width) = (block.start, block.len());
            let scores = &mut scores.as_mut_slice()[..rows * width];
            let d_scores = &mut d_scores.as_mut_slice()[..rows * width];
            let [k, v] = item.context.at(&block, shape, item.kv);
            product(parallelism, MatMut::new(scores, rows, width), Store::Overwrite, 1.0, stacked, k.t());
            product(parallelism, MatMut::new(d_scores, rows, width), Store::Overwrite, 1.0, d_stacked, v.t());
            for stacked_row in 0..rows {
                let position = stacked_row % count;
                let lse = inputs.log_sum_exp[(row + position) * shape.heads + head_of(stacked_row)];
                let seen = visible(shape, first + position);
                let scores = &mut scores[stacked_row * width..][..width];
                let d_scores = &mut d_scores[stacked_row * width..][..width];
                differentiate(scores, d_scores, start, &seen, lse, deltas.as_slice()[stacked_row]);
            }
            let probabilities = MatRef::new(scores, rows, width);
            let d_scores = MatRef::new(d_scores, rows, width);
            let store = if start == keys.start { Store::Overwrite } else { Store::Add };
            let d_v = MatMut::new(&mut d_v.as_mut_slice()[start * d..], width, d);
            product(parallelism, d_v, Store::Add, 1.0, probabilities.t(), d_stacked);
            let d_k = MatMut::new(&mut d_k.as_mut_slice()[start * d..], width, d);
            product(parallelism, d_k, Store::Add, 1.0, d_scores.t(), stacked);
            let d_queries = MatMut::new(d_queries.as_mut_slice(), rows, d);
            product(parallelism, d_queries, store, shape.scale, d_scores, k);
        }
        for (stacked_row, gradient) in d_queries.as_slice()[..rows * d].chunks_exact(d).enumerate() {
            item.d_q[stacked_row / count][first - shared + stacked_row % count].copy_from_slice(gradient);
        }
    }
    let (of_keys, of_values) = item.d_prefix.split_at_mut(shared * d);
    for (rows, of_prefix, gradients) in [(item.d_k, of_keys, &d_k), (item.d_v, of_values, &d_v)] {
        let (before, own) = gradients.as_slice().split_at(shared * d);
        of_prefix.copy_from_slice(before);
        rows.into_iter().zip(own.chunks_exact(d)).for_each(|(row, part)| row.copy_from_slice(part));
    }
    Ok(())
}

/// Probabilities and score gradients of one query against keys `start..`; zero where it does not see.
fn differentiate(scores: &mut [f32], d_scores: &mut [f32], start: usize, seen: &Range<usize>, lse: f32, delta: f32) {
    let from = seen.start.saturating_sub(start).min(scores.len());
    let to = seen.end.saturating_sub(start).min(scores.len()).max(from);
    for hidden in [0..from, to..scores.len()] {
        scores[hidden.clone()].fill(0.0);
        d_scores[hidden].fill(0.0);
    }
    probabilities_and_score_gradients(&mut scores[from..to], &mut d_scores[from..to], lse, delta);
}
