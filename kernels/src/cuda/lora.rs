//! The low-rank path of a linear layer: adds to `y`, which holds the product with the frozen weight; adds to `d_x`.

use super::buffers::{Matrix, Packing, Vector};
use super::check::{self, length};
use super::weights::FrozenLinear;
use super::{Arg, CudaBackend, Grid};
use crate::Philox;
use crate::contract::{Dropout, LoraPath, Result};
use crate::footprint::LowRank;

/// Threads of a block.
const THREADS: u32 = 256;

/// Tiles of lora.cu, which has kernels for ranks up to 16 and for all others.
struct Tiles {
    /// Elements of the rank in a tile of a contraction; kernels are named by it.
    thin: usize,
    /// Elements of a contraction's tile on the wide side.
    wide: usize,
    /// Elements of K that a block contracts.
    split: usize,
    /// Tokens and channels of an expansion that a block does.
    expansion: [usize; 2],
}

const NARROW: Tiles = Tiles { thin: 16, wide: 512, split: 512, expansion: [256, 256] };
const BROAD: Tiles = Tiles { thin: 64, wide: 128, split: 1024, expansion: [128, 128] };

impl Tiles {
    fn of(rank: usize) -> &'static Self {
        if rank <= NARROW.thin { &NARROW } else { &BROAD }
    }
}

/// The parameters of a mask; all zero for none.
fn mask(dropout: Option<&Dropout<'_, CudaBackend>>) -> [Arg; 8] {
    let Some(dropout) = dropout.filter(|dropout| dropout.drops()) else {
        let none = Arg::U32(0);
        return [none, none, none, Arg::F32(0.0), none, Arg::NULL, Arg::NULL, Arg::NULL];
    };
    let [low, high] = Philox::dropout(dropout.seed, dropout.step).key();
    let Packing { positions, sequence, samples, .. } = dropout.packing;
    [
        low.into(),
        high.into(),
        // At most 2^32 - 2^8: a probability below 1 is at most 1 - 2^-24.
        (dropout.threshold() as u32).into(),
        dropout.keep_scale().into(),
        dropout.module.into(),
        positions.into(),
        sequence.into(),
        samples.into(),
    ]
}

/// Bytes of the partial sums of a contraction over `k` elements, to `[side, rank]`; none where there is one piece.
fn partial_bytes(side: usize, k: usize, rank: usize) -> usize {
    let pieces = k.div_ceil(Tiles::of(rank).split);
    if pieces == 1 { 0 } else { pieces * side * rank * size_of::<f32>() }
}

fn d_down_bytes(rows: usize, rank: usize) -> usize {
    rows * rank * size_of::<f32>()
}

/// Bytes of the buffers that [`forward`] has at once.
pub(super) fn forward_scratch(path: &LowRank) -> Vec<usize> {
    if path.rank == 0 {
        return Vec::new();
    }
    vec![partial_bytes(path.rows, path.inp, path.rank)]
}

/// Bytes of the buffers that [`backward`] has at once, when it has most.
pub(super) fn backward_scratch(path: &LowRank) -> Vec<usize> {
    let LowRank { rows, inp, out, rank, .. } = *path;
    if rank == 0 {
        return Vec::new();
    }
    let partial = [(out, rows), (rows, out), (inp, rows)].map(|(side, k)| partial_bytes(side, k, rank));
    vec![d_down_bytes(rows, rank), partial.into_iter().max().unwrap_or(0)]
}

/// What a contraction sums over.
#[derive(Clone, Copy)]
enum Over {
    /// The columns of its activations: the result is `[T, rank]`.
    Channels,
    /// Their rows: the result is a gradient of `A` or `B`.
    Tokens,
}

/// A contraction of `wide` activations with a thin f32 operand, to `out`.
struct Contraction<'a> {
    kernel: &'a str,
    wide: &'a Matrix,
    thin: u64,
    rank: usize,
    over: Over,
    scale: f32,
    /// Parameters of the mask, of the kernels that have one.
    mask: &'a [Arg],
    out: u64,
}

impl Contraction<'_> {
    /// K is cut every so many elements; the sums of the pieces, when there are some, are added in order.
    fn enqueue(&self, b: &CudaBackend) -> Result<()> {
        let (tokens, channels) = (self.wide.rows, self.wide.cols);
        let (side, k) = match self.over {
            Over::Channels => (tokens, channels),
            Over::Tokens => (channels, tokens),
        };
        let (pieces, len) = (k.div_ceil(Tiles::of(self.rank).split), side * self.rank);
        if pieces == 1 {
            return self.launch(b, side, pieces, self.scale, self.out);
        }
        let partial = b.scratch(partial_bytes(side, k, self.rank), "partial sums of a low-rank product")?;
        self.launch(b, side, pieces, 1.0, partial.ptr())?;
        let args = [Arg::from(&partial), Arg::Ptr(self.out), (len as u32).into(), (pieces as u32).into()];
        let args = [&args[..], &[self.scale.into()]].concat();
        b.launch("lora", "lora_sum", false, Grid::elements(len, THREADS), &args)
    }

    fn launch(&self, b: &CudaBackend, side: usize, pieces: usize, scale: f32, out: u64) -> Result<()> {
        let &Tiles { thin, wide, .. } = Tiles::of(self.rank);
        let blocks = [side.div_ceil(wide) as u32, pieces as u32, self.rank.div_ceil(thin) as u32];
        let (tokens, channels, rank) = (self.wide.rows as u32, self.wide.cols as u32, self.rank as u32);
        let args = [
            self.wide.into(),
            Arg::Ptr(self.thin),
            Arg::Ptr(out),
            tokens.into(),
            channels.into(),
            rank.into(),
            scale.into(),
        ];
        let kernel = format!("{}_{thin}", self.kernel);
        let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
        b.launch("lora", &kernel, true, grid, &[&args[..], self.mask].concat())
    }
}

/// `to += ...` of a thin operand `[T, rank]` and a matrix of the adapter.
fn expand(b: &CudaBackend, kernel: &str, thin: u64, matrix: u64, rank: usize, to: &Matrix, tail: &[Arg]) -> Result<()> {
    let &Tiles { thin: width, expansion: [rows, cols], .. } = Tiles::of(rank);
    let blocks = [to.cols.div_ceil(cols) as u32, to.rows.div_ceil(rows) as u32, 1];
    let (tokens, channels, rank) = (to.rows as u32, to.cols as u32, rank as u32);
    let args = [Arg::Ptr(thin), Arg::Ptr(matrix), to.into(), tokens.into(), channels.into(), rank.into()];
    let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
    b.launch("lora", &format!("{kernel}_{width}"), true, grid, &[&args[..], tail].concat())
}

fn check(
    operation: &'static str,
    x: &Matrix,
    weight: &FrozenLinear,
    path: &LoraPath<'_, CudaBackend>,
    down: &Vector,
) -> Result<()> {
    let shape = (weight.out(), weight.inp());
    check::lora_path(operation, path, path.parameters.len(), shape, x.rows, Packing::tokens)?;
    length(operation, "down", down.len(), x.rows * path.rank)
}

pub(super) fn forward(
    b: &CudaBackend,
    x: &Matrix,
    weight: &FrozenLinear,
    path: &LoraPath<'_, CudaBackend>,
    down: &mut Vector,
    y: &mut Matrix,
) -> Result<()> {
    check("linear", x, weight, path, down)?;
    let (rank, out, mask) = (path.rank, down.at(0), mask(path.dropout.as_ref()));
    let (a, b_matrix) = (path.parameters.at(path.a.start), path.parameters.at(path.b.start));
    let (over, scale) = (Over::Channels, 1.0);
    Contraction { kernel: "lora_down", wide: x, thin: a, rank, over, scale, mask: &mask, out }.enqueue(b)?;
    expand(b, "lora_up", out, b_matrix, rank, y, &[path.scaling.into()])
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    b: &CudaBackend,
    d_y: &Matrix,
    x: &Matrix,
    weight: &FrozenLinear,
    path: &LoraPath<'_, CudaBackend>,
    down: &Vector,
    d_parameters: &mut Vector,
    d_x: Option<&mut Matrix>,
) -> Result<()> {
    check("linear_backward", x, weight, path, down)?;
    length("linear_backward", "d_parameters", d_parameters.len(), path.parameters.len())?;
    let (rank, scale, mask) = (path.rank, path.scaling, mask(path.dropout.as_ref()));
    let (a, b_matrix) = (path.parameters.at(path.a.start), path.parameters.at(path.b.start));
    let (d_a, d_b) = (d_parameters.at(path.a.start), d_parameters.at(path.b.start));
    let d_down = b.scratch(d_down_bytes(x.rows, rank), "the gradient of a low-rank projection")?;

    let (over, thin) = (Over::Tokens, down.at(0));
    Contraction { kernel: "lora_d_b", wide: d_y, thin, rank, over, scale, mask: &[], out: d_b }.enqueue(b)?;
    let (over, out) = (Over::Channels, d_down.ptr());
    Contraction { kernel: "lora_d_down", wide: d_y, thin: b_matrix, rank, over, scale, mask: &[], out }.enqueue(b)?;
    let (over, thin, scale) = (Over::Tokens, d_down.ptr(), 1.0);
    Contraction { kernel: "lora_d_a", wide: x, thin, rank, over, scale, mask: &mask, out: d_a }.enqueue(b)?;
    match d_x {
        Some(d_x) => expand(b, "lora_d_x", d_down.ptr(), a, rank, d_x, &mask),
        None => Ok(()),
    }
}
