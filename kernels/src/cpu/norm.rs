//! RMSNorm, fused with the residual add, forward and backward.

use super::CpuBackend;
use super::buffers::{Matrix, Vector};
use super::check::{ensure, length, shape};
use super::gemm::Store;
use super::linear::open;
use super::simd::{LANES, add_lanes, vectorized};
use crate::contract::{NormKind, Result, Target};

fn offset(kind: NormKind) -> f32 {
    match kind {
        NormKind::Plain => 0.0,
        NormKind::UnitOffset => 1.0,
    }
}

/// Sum of `f(i)` over `0..len` by lanes.
macro_rules! lane_sum {
    ($len:expr, |$i:ident| $term:expr) => {{
        let len = $len;
        let mut lanes = [0.0_f32; LANES];
        let whole = len / LANES * LANES;
        for start in (0..whole).step_by(LANES) {
            for lane in 0..LANES {
                let $i = start + lane;
                lanes[lane] += $term;
            }
        }
        for $i in whole..len {
            lanes[$i - whole] += $term;
        }
        add_lanes(lanes)
    }};
}

vectorized! {
    /// One group: returns `1 / rms`.
    fn norm_group(x: &[f32], weight: &[f32], offset: f32, eps: f32, out: &mut [f32]) -> f32 {
        let n = x.len();
        let (weight, out) = (&weight[..n], &mut out[..n]);
        let squares = lane_sum!(n, |i| x[i] * x[i]);
        let inv_rms = 1.0 / (squares / n as f32 + eps).sqrt();
        for i in 0..n {
            out[i] = x[i] * inv_rms * (offset + weight[i]);
        }
        inv_rms
    }

    /// With `g = d_out * w`: `d_x = inv_rms * (g - x * inv_rms² * mean(g x))`.
    #[allow(clippy::too_many_arguments)]
    fn norm_group_backward(
        d_out: &[f32], x: &[f32], weight: &[f32], offset: f32, inv_rms: f32, add: bool, d_x: &mut [f32],
    ) {
        let n = x.len();
        let (d_out, weight, d_x) = (&d_out[..n], &weight[..n], &mut d_x[..n]);
        let dot = lane_sum!(n, |i| d_out[i] * (offset + weight[i]) * x[i]);
        let along = inv_rms * inv_rms * inv_rms * (dot / n as f32);
        if add {
            for i in 0..n {
                d_x[i] += inv_rms * (d_out[i] * (offset + weight[i])) - along * x[i];
            }
        } else {
            for i in 0..n {
                d_x[i] = inv_rms * (d_out[i] * (offset + weight[i])) - along * x[i];
            }
        }
    }
}

/// Elements of a group and groups in all.
fn groups(operation: &'static str, x: &Matrix, weight: &Vector, inv_rms: &Vector) -> Result<usize> {
    let group = weight.len();
    ensure(group > 0 && x.cols.is_multiple_of(group), operation, || {
        format!("rows of {} do not hold whole groups of {group}", x.cols)
    })?;
    length(operation, "inv_rms", inv_rms.len(), x.rows * x.cols / group)?;
    Ok(group)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(
    b: &CpuBackend,
    x: &mut Matrix,
    delta: Option<&Matrix>,
    weight: &Vector,
    eps: f32,
    kind: NormKind,
    out: &mut Matrix,
    inv_rms: &mut Vector,
) -> Result<()> {
    let group = groups("add_rms_norm", x, weight, inv_rms)?;
    shape("add_rms_norm", "out", out, x.rows, x.cols)?;
    if let Some(delta) = delta {
        shape("add_rms_norm", "delta", delta, x.rows, x.cols)?;
    }
    let piece = b.threads.rows_per_piece(x.rows, x.cols) * x.cols;
    let items: Vec<_> = x
        .data_mut()
        .chunks_mut(piece)
        .zip(out.data_mut().chunks_mut(piece))
        .zip(inv_rms.data_mut().chunks_mut(piece / group))
        .enumerate()
        .collect();
    let (weight, offset) = (weight.data(), offset(kind));
    b.threads.for_each(items, |(index, ((x, out), inv_rms))| {
        let delta = delta.map(|delta| &delta.data()[index * piece..][..x.len()]);
        for (g, (x, out)) in x.chunks_exact_mut(group).zip(out.chunks_exact_mut(group)).enumerate() {
            if let Some(delta) = delta {
                super::rows::add_into(x, &delta[g * group..][..group]);
            }
            inv_rms[g] = norm_group(x, weight, offset, eps, out);
        }
    });
    Ok(())
}

pub(crate) fn backward(
    b: &CpuBackend,
    d_out: &Matrix,
    x: &Matrix,
    weight: &Vector,
    kind: NormKind,
    inv_rms: &Vector,
    d_x: Target<'_, Matrix>,
) -> Result<()> {
    let group = groups("rms_norm_backward", x, weight, inv_rms)?;
    let (store, d_x) = open(d_x);
    shape("rms_norm_backward", "d_out", d_out, x.rows, x.cols)?;
    shape("rms_norm_backward", "d_x", d_x, x.rows, x.cols)?;
    let piece = b.threads.rows_per_piece(x.rows, x.cols) * x.cols;
    let items: Vec<_> = d_x
        .data_mut()
        .chunks_mut(piece)
        .zip(d_out.data().chunks(piece))
        .zip(x.data().chunks(piece))
        .zip(inv_rms.data().chunks(piece / group))
        .collect();
    let (weight, offset, add) = (weight.data(), offset(kind), store == Store::Add);
    b.threads.for_each(items, |(((d_x, d_out), x), inv_rms)| {
        let inputs = d_out.chunks_exact(group).zip(x.chunks_exact(group));
        for ((d_x, (d_out, x)), &inv_rms) in d_x.chunks_exact_mut(group).zip(inputs).zip(inv_rms) {
            norm_group_backward(d_out, x, weight, offset, inv_rms, add, d_x);
        }
    });
    Ok(())
}
