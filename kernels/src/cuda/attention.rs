//! Attention: packed, backward, and with a cache.
//!
//! Two kinds of kernels, chosen by shape alone: tensor cores for bf16 at the usual head sizes, plain f32 arithmetic for
//! all else (`kernels/cuda/attention_forward.cuh` and `attention_plain.cuh`). Blocks find their sequence on the device,
//! so that a packing needs no list of work: a grid has room for every sequence's tiles.

use super::CudaBackend;
use super::arguments::{Arg, Grid};
use super::buffers::{Cache, Matrix, Packing, Vector};
use super::check::{attention_shape, ensure, shape as check_matrix};
use super::{Storage, check};
use crate::contract::{AttentionShape, Result};

/// `NO_WINDOW` of attention.cuh: more than any sequence is long.
const NO_WINDOW: usize = 0x7fff_ffff;
/// The largest head that any kernel takes.
const MOST_CHANNELS: usize = 256;
/// Threads of a team in the delta kernel, and of a block.
const DELTA: (usize, u32) = (4, 256);

/// The kernels for a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    /// Tensor cores, with this head size.
    Tensor(usize),
    /// Plain f32 arithmetic, with any.
    Plain(usize),
}

/// Rows that a block owns, and its shared memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    rows: usize,
    shared: usize,
}

impl Program {
    fn of(operation: &'static str, storage: Storage, shape: &AttentionShape) -> Result<Self> {
        let channels = shape.head_dim;
        ensure(channels <= MOST_CHANNELS, operation, || {
            format!("head_dim is {channels}, more than the {MOST_CHANNELS} that the CUDA backend takes")
        })?;
        Ok(match (storage, channels) {
            (Storage::Bf16, 64 | 96 | 128 | 256) => Self::Tensor(channels),
            _ => Self::Plain(channels),
        })
    }

    /// How the kernels are named, storage aside.
    fn kernel(self, operation: &str) -> String {
        match self {
            Self::Tensor(channels) => format!("{operation}_{channels}"),
            Self::Plain(_) => format!("{operation}_plain"),
        }
    }

    fn threads(self) -> u32 {
        match self {
            Self::Tensor(_) => 128,
            Self::Plain(_) => 256,
        }
    }

    /// Of the forward kernels: a tile of queries, one of keys, one of values.
    fn forward(self) -> Block {
        match self {
            Self::Tensor(channels) => {
                let keys = if channels <= 128 { 64 } else { 32 };
                Block { rows: 64, shared: tensor_tiles(channels, 64 + 2 * keys) }
            }
            Self::Plain(channels) => Block { rows: 16, shared: plain_tiles(channels, 3, 1) },
        }
    }

    /// Of the kernels of the queries' gradient: two tiles of its own, two stages of two that it meets.
    fn query_gradient(self) -> Block {
        match self {
            Self::Tensor(channels) => Block { rows: 64, shared: tensor_tiles(channels, 2 * 64 + 4 * met(channels)) },
            Self::Plain(channels) => Block { rows: 16, shared: plain_tiles(channels, 4, 1) },
        }
    }

    /// Of the kernels of the keys' and values' gradients: likewise, and log-sum-exp and delta of what it meets.
    fn key_gradients(self) -> Block {
        match self {
            Self::Tensor(channels) => {
                let (own, met) = (if channels <= 128 { 64 } else { 32 }, met(channels));
                let statistics = 4 * met * size_of::<f32>();
                Block { rows: own, shared: tensor_tiles(channels, 2 * own + 4 * met) + statistics }
            }
            Self::Plain(channels) => Block { rows: 16, shared: plain_tiles(channels, 4, 2) },
        }
    }

    /// A grid of `tiles` by `heads` blocks.
    fn grid(self, tiles: usize, heads: usize, block: Block) -> Grid {
        Grid { blocks: [tiles as u32, heads as u32, 1], threads: self.threads(), shared_bytes: block.shared as u32 }
    }

    /// A grid that has a block for every tile of every sequence (see `find_tile` in attention.cuh).
    fn packed(self, packing: &Packing, heads: usize, block: Block) -> Grid {
        let tiles = if packing.tokens == 0 { 0 } else { packing.tokens / block.rows + packing.sequences };
        self.grid(tiles, heads, block)
    }

    /// Heads, window and scale, as all kernels take them; the plain ones are told the head size too.
    fn shape_args(self, shape: &AttentionShape) -> Vec<Arg> {
        let window = shape.window.map_or(NO_WINDOW, |window| window.min(NO_WINDOW));
        let mut args = vec![
            Arg::U32(shape.heads as u32),
            Arg::U32(shape.kv_heads as u32),
            Arg::U32(window as u32),
            Arg::F32(shape.scale),
        ];
        if let Self::Plain(channels) = self {
            args.push(Arg::U32(channels as u32));
        }
        args
    }
}

/// Rows that the backward kernels meet at a time: `MET_KEYS` and `MET_QUERIES` of attention_backward.cu.
fn met(channels: usize) -> usize {
    match channels {
        64 => 64,
        96 | 128 => 32,
        _ => 16,
    }
}

/// Bytes of rows of bf16.
fn tensor_tiles(channels: usize, rows: usize) -> usize {
    rows * channels * 2
}

/// Bytes of tiles of 16 rows of f32, an odd number of words apart, and of tables of 16 x 16 weights.
fn plain_tiles(channels: usize, tiles: usize, tables: usize) -> usize {
    (tiles * 16 * (channels | 1) + tables * 16 * 16) * size_of::<f32>()
}

#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    b: &CudaBackend,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    packing: &Packing,
    shape: &AttentionShape,
    out: &mut Matrix,
    log_sum_exp: &mut Vector,
) -> Result<()> {
    const OPERATION: &str = "attention";
    let (queries, keys) = ([("q", q), ("out", &*out)], [("k", k), ("v", v)]);
    check::attention(OPERATION, shape, packing.tokens(), &queries, &keys, log_sum_exp.len())?;
    let program = Program::of(OPERATION, b.storage(), shape)?;
    let grid = program.packed(packing, shape.heads, program.forward());
    let mut args: Vec<Arg> =
        vec![q.into(), k.into(), v.into(), (&packing.bounds).into(), Arg::U32(packing.sequences as u32)];
    args.extend(program.shape_args(shape));
    args.extend([Arg::from(out), Arg::from(log_sum_exp)]);
    b.launch("attention", &program.kernel("attention"), true, grid, &args)
}

/// Bytes of the statistics of each token and head that the kernels of the backward pass share.
pub(super) fn statistics_bytes(tokens: usize, shape: &AttentionShape) -> usize {
    2 * tokens * shape.heads * size_of::<f32>()
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    b: &CudaBackend,
    d_out: &Matrix,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    out: &Matrix,
    log_sum_exp: &Vector,
    packing: &Packing,
    shape: &AttentionShape,
    d_q: &mut Matrix,
    d_k: &mut Matrix,
    d_v: &mut Matrix,
) -> Result<()> {
    const OPERATION: &str = "attention_backward";
    let queries = [("d_out", d_out), ("q", q), ("out", out), ("d_q", &*d_q)];
    let keys = [("k", k), ("v", v), ("d_k", &*d_k), ("d_v", &*d_v)];
    check::attention(OPERATION, shape, packing.tokens(), &queries, &keys, log_sum_exp.len())?;
    let program = Program::of(OPERATION, b.storage(), shape)?;

    let items = packing.tokens() * shape.heads;
    let statistics = b.scratch(statistics_bytes(packing.tokens(), shape), "the statistics of attention")?;
    let tokens = Arg::U32(packing.tokens() as u32);
    let (team, threads) = DELTA;
    let mut args: Vec<Arg> = vec![d_out.into(), out.into(), log_sum_exp.into(), tokens];
    args.extend([Arg::U32(shape.heads as u32), Arg::U32(shape.head_dim as u32), (&statistics).into()]);
    b.launch(OPERATION, "attention_delta", true, Grid::elements(items * team, threads), &args)?;

    let mut args: Vec<Arg> = vec![d_out.into(), q.into(), k.into(), v.into(), (&statistics).into(), tokens];
    args.extend([Arg::from(&packing.bounds), Arg::U32(packing.sequences as u32)]);
    args.extend(program.shape_args(shape));
    let with = |gradients: &[Arg]| [&args[..], gradients].concat();
    let grid = program.packed(packing, shape.heads, program.query_gradient());
    b.launch(OPERATION, &program.kernel("attention_query_gradient"), true, grid, &with(&[d_q.into()]))?;
    let grid = program.packed(packing, shape.kv_heads, program.key_gradients());
    b.launch(OPERATION, &program.kernel("attention_key_gradients"), true, grid, &with(&[d_k.into(), d_v.into()]))
}

pub(super) fn cached(
    b: &CudaBackend,
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
    ensure(cache.len + rows <= cache.capacity, OPERATION, || {
        format!("{rows} more tokens on {} exceed the cache's capacity of {}", cache.len, cache.capacity)
    })?;
    let program = Program::of(OPERATION, b.storage(), shape)?;

    let row = kv_cols * b.storage().bytes();
    for (held, new) in [(&cache.keys, k), (&cache.values, v)] {
        b.device().copy(held.ptr() + (cache.len * row) as u64, new.buffer.ptr(), rows * row)?;
    }
    let before = cache.len;
    cache.len += rows;

    let block = program.forward();
    let grid = program.grid(rows.div_ceil(block.rows), shape.heads, block);
    let mut args: Vec<Arg> = vec![q.into(), (&cache.keys).into(), (&cache.values).into()];
    args.extend([Arg::U32(before as u32), Arg::U32(rows as u32)]);
    args.extend(program.shape_args(shape));
    args.push(out.into());
    b.launch(OPERATION, &program.kernel("attention_cached"), true, grid, &args)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the smallest of the architectures that we build for (8.6, 8.9, 12.0) lets a block have.
    const MOST_SHARED: usize = 99 << 10;

    #[test]
    fn every_block_fits() {
        for program in [64, 96, 128, 256].map(Program::Tensor).into_iter().chain((1..=256).map(Program::Plain)) {
            for block in [program.forward(), program.query_gradient(), program.key_gradients()] {
                assert!(block.shared <= MOST_SHARED, "{program:?}: {block:?}");
            }
        }
    }

    #[test]
    fn the_shape_chooses() {
        let shape = |head_dim| AttentionShape { heads: 1, kv_heads: 1, head_dim, scale: 1.0, window: None };
        let of = |storage, head_dim| Program::of("attention", storage, &shape(head_dim)).ok();
        assert_eq!(of(Storage::Bf16, 96), Some(Program::Tensor(96)));
        assert_eq!(of(Storage::Bf16, 80), Some(Program::Plain(80)));
        assert_eq!(of(Storage::F32, 64), Some(Program::Plain(64)));
        assert_eq!(of(Storage::F32, 257), None);
    }
}
