//! Attention: packed, backward, and with a cache.

use super::ReferenceBackend;
use super::buffers::{Cache, Matrix, Packing};
use crate::check::{self, attention_shape, ensure, shape as check_matrix};
use crate::contract::{AttentionShape, Result};
use crate::reference::{self, AttentionGradients};

#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    b: &ReferenceBackend,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    packing: &Packing,
    shape: &AttentionShape,
    out: &mut Matrix,
    log_sum_exp: &mut Vec<f64>,
) -> Result<()> {
    let (queries, keys) = ([("q", q), ("out", &*out)], [("k", k), ("v", v)]);
    check::attention("attention", shape, packing.tokens(), &queries, &keys, log_sum_exp.len())?;
    let (values, saved) = reference::attention(&q.values, &k.values, &v.values, packing.layout.bounds(), shape);
    out.values = b.stored(values);
    *log_sum_exp = saved;
    Ok(())
}

/// The probabilities are formed anew, not by way of `out` and `log_sum_exp`.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    b: &ReferenceBackend,
    d_out: &Matrix,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    out: &Matrix,
    log_sum_exp: &[f64],
    packing: &Packing,
    shape: &AttentionShape,
    [d_q, d_k, d_v]: [&mut Matrix; 3],
) -> Result<()> {
    let queries = [("d_out", d_out), ("q", q), ("out", out), ("d_q", &*d_q)];
    let keys = [("k", k), ("v", v), ("d_k", &*d_k), ("d_v", &*d_v)];
    check::attention("attention_backward", shape, packing.tokens(), &queries, &keys, log_sum_exp.len())?;
    let bounds = packing.layout.bounds();
    let gradients = reference::attention_backward(&d_out.values, &q.values, &k.values, &v.values, bounds, shape);
    let AttentionGradients { d_q: of_q, d_k: of_k, d_v: of_v } = gradients;
    for (matrix, gradient) in [(d_q, of_q), (d_k, of_k), (d_v, of_v)] {
        matrix.values = b.stored(gradient);
    }
    Ok(())
}

/// Attention over the whole sequence, of which the last rows are wanted: the queries before them are zeros.
pub(super) fn cached(
    b: &ReferenceBackend,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    cache: &mut Cache,
    shape: &AttentionShape,
    out: &mut Matrix,
) -> Result<()> {
    const OPERATION: &str = "attention_cached";
    attention_shape(OPERATION, shape)?;
    let (rows, q_cols, kv_cols) = (q.rows, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    for (name, matrix, cols) in [("q", q, q_cols), ("k", k, kv_cols), ("v", v, kv_cols), ("out", &*out, q_cols)] {
        check_matrix(OPERATION, name, matrix, rows, cols)?;
    }
    ensure(cache.cols == kv_cols, OPERATION, || {
        format!("the cache holds rows of {}, the keys have {kv_cols}", cache.cols)
    })?;
    let before = cache.len();
    ensure(before + rows <= cache.capacity, OPERATION, || {
        format!("{rows} more tokens on {before} exceed the cache's capacity of {}", cache.capacity)
    })?;
    cache.keys.extend_from_slice(&k.values);
    cache.values.extend_from_slice(&v.values);
    let mut queries = vec![0.0; before * q_cols];
    queries.extend_from_slice(&q.values);
    let bounds = [0, (before + rows) as u32];
    let (mut values, _) = reference::attention(&queries, &cache.keys, &cache.values, &bounds, shape);
    out.values = b.stored(values.split_off(before * q_cols));
    Ok(())
}
