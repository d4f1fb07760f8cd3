//! Frozen linear layers with their low-rank paths.
//!
//! The thin products accumulate onto the fat ones in place; a dropped-out copy of the input exists only for a piece of
//! rows at a time.

use super::CpuBackend;
use super::buffers::{Matrix, PackingTable, Vector};
use super::check::{self, length, shape};
use super::dropout::Mask;
use super::gemm::{MatMut, MatRef, Store, product};
use super::weights::{FrozenLinear, RowsAre};
use crate::contract::{LoraPath, Result, Target};
use gemm::Parallelism;

/// Rows of activations that are masked at a time.
pub(crate) const MASKED_ROWS: usize = 128;
/// Rows of masked activations that the gradient of `A` takes at a time: as many as one product takes without cutting K.
pub(crate) const GRADIENT_ROWS: usize = 4 * MASKED_ROWS;

/// The adapter of a call, its shapes checked.
struct Adapter<'a> {
    a: &'a [f32],
    b: &'a [f32],
    rank: usize,
    scaling: f32,
    mask: Option<Mask<'a>>,
}

impl<'a> Adapter<'a> {
    fn new(
        operation: &'static str,
        path: &LoraPath<'a, CpuBackend>,
        weight: &FrozenLinear,
        rows: usize,
    ) -> Result<Self> {
        let all = path.parameters.data();
        let (shape, tokens) = ((weight.out(), weight.inp()), PackingTable::tokens);
        check::lora_path(operation, path, all.len(), shape, rows, tokens)?;
        Ok(Self {
            a: &all[path.a.clone()],
            b: &all[path.b.clone()],
            rank: path.rank,
            scaling: path.scaling,
            mask: path.dropout.as_ref().filter(|dropout| dropout.drops()).map(Mask::new),
        })
    }

    fn a(&self, inp: usize) -> MatRef<'a> {
        MatRef::new(self.a, self.rank, inp)
    }

    fn b(&self, out: usize) -> MatRef<'a> {
        MatRef::new(self.b, out, self.rank)
    }
}

pub(crate) fn forward(
    backend: &CpuBackend,
    x: &Matrix,
    weight: &FrozenLinear,
    lora: Option<(&LoraPath<'_, CpuBackend>, &mut Vector)>,
    y: &mut Matrix,
) -> Result<()> {
    let (rows, inp, out) = (x.rows, weight.inp(), weight.out());
    shape("linear", "x", x, rows, inp)?;
    shape("linear", "y", y, rows, out)?;
    base(backend, x.data(), rows, weight, y.data_mut())?;
    let Some((path, down)) = lora else { return Ok(()) };
    let adapter = Adapter::new("linear", path, weight, rows)?;
    length("linear", "down", down.len(), rows * adapter.rank)?;
    project_down(backend, x, &adapter, down.data_mut())?;
    let down = MatRef::new(down.data(), rows, adapter.rank);
    backend.threads.with_parallelism(|parallelism| {
        let y = MatMut::new(y.data_mut(), rows, out);
        product(parallelism, y, Store::Add, adapter.scaling, down, adapter.b(out).t());
    });
    Ok(())
}

/// `y = x Wᵀ + bias`.
pub(crate) fn base(backend: &CpuBackend, x: &[f32], rows: usize, weight: &FrozenLinear, y: &mut [f32]) -> Result<()> {
    if rows == 1 {
        base_of_vector(backend, x, weight, y);
        return Ok(());
    }
    let (inp, out) = (weight.inp(), weight.out());
    let store = match &weight.bias {
        None => Store::Overwrite,
        Some(bias) => {
            y.chunks_exact_mut(out).for_each(|row| row.copy_from_slice(bias));
            Store::Add
        }
    };
    weight.weight.in_stretches(backend, RowsAre::Columns, |of_weight, stretch| {
        backend.threads.with_parallelism(|parallelism| {
            let y = MatMut::strided(&mut y[of_weight.start..], rows, of_weight.len(), out);
            product(parallelism, y, store, 1.0, MatRef::new(x, rows, inp), stretch.t());
        });
    })
}

/// One row, as in decoding: the weight is read once, so memory is the limit and every thread helps to read.
fn base_of_vector(backend: &CpuBackend, x: &[f32], weight: &FrozenLinear, y: &mut [f32]) {
    let piece = backend.threads.rows_per_piece(weight.out(), weight.inp());
    backend.threads.for_each(y.chunks_mut(piece).enumerate().collect(), |(index, y): (usize, &mut [f32])| {
        for (offset, y) in y.iter_mut().enumerate() {
            let row = index * piece + offset;
            *y = weight.weight.dot_row(row, x) + weight.bias.as_ref().map_or(0.0, |bias| bias[row]);
        }
    });
}

/// `down = drop(x) Aᵀ`.
fn project_down(backend: &CpuBackend, x: &Matrix, adapter: &Adapter<'_>, down: &mut [f32]) -> Result<()> {
    let (rows, inp, rank) = (x.rows, x.cols, adapter.rank);
    let Some(mask) = adapter.mask else {
        backend.threads.with_parallelism(|parallelism| {
            let down = MatMut::new(down, rows, rank);
            product(parallelism, down, Store::Overwrite, 1.0, MatRef::new(x.data(), rows, inp), adapter.a(inp).t());
        });
        return Ok(());
    };
    let items = x.data().chunks(MASKED_ROWS * inp).zip(down.chunks_mut(MASKED_ROWS * rank)).enumerate().collect();
    backend.threads.try_for_each(items, |(piece, (x, down)): (usize, (&[f32], &mut [f32]))| {
        let count = x.len() / inp;
        let mut dropped = backend.memory.take(x.len(), "a masked piece of activations")?;
        mask.apply(piece * MASKED_ROWS, x, inp, dropped.as_mut_slice());
        let dropped = MatRef::new(dropped.as_slice(), count, inp);
        let down = MatMut::new(down, count, rank);
        product(Parallelism::None, down, Store::Overwrite, 1.0, dropped, adapter.a(inp).t());
        Ok(())
    })
}

pub(crate) fn backward(
    backend: &CpuBackend,
    d_y: &Matrix,
    x: &Matrix,
    weight: &FrozenLinear,
    lora: Option<(&LoraPath<'_, CpuBackend>, &Vector, &mut Vector)>,
    d_x: Option<Target<'_, Matrix>>,
) -> Result<()> {
    let (rows, inp, out) = (x.rows, weight.inp(), weight.out());
    shape("linear_backward", "x", x, rows, inp)?;
    shape("linear_backward", "d_y", d_y, rows, out)?;
    let mut d_x = d_x.map(open);
    if let Some((_, d_x)) = &d_x {
        shape("linear_backward", "d_x", d_x, rows, inp)?;
    }
    if let Some((store, d_x)) = &mut d_x {
        add_base_gradient(backend, d_y.data(), (rows, out), weight, *store, d_x.data_mut())?;
    }
    let Some((path, down, d_parameters)) = lora else { return Ok(()) };
    let adapter = Adapter::new("linear_backward", path, weight, rows)?;
    length("linear_backward", "down", down.len(), rows * adapter.rank)?;
    length("linear_backward", "d_parameters", d_parameters.len(), path.parameters.len())?;

    let d_y = MatRef::new(d_y.data(), rows, out);
    let down = MatRef::new(down.data(), rows, adapter.rank);
    let mut d_down = backend.memory.take(rows * adapter.rank, "the gradient of a low-rank projection")?;
    let d_parameters = d_parameters.data_mut();
    backend.threads.with_parallelism(|parallelism| {
        let d_b = MatMut::new(&mut d_parameters[path.b.clone()], out, adapter.rank);
        product(parallelism, d_b, Store::Overwrite, adapter.scaling, d_y.t(), down);
        let d_down = MatMut::new(d_down.as_mut_slice(), rows, adapter.rank);
        product(parallelism, d_down, Store::Overwrite, adapter.scaling, d_y, adapter.b(out));
    });
    let d_a = &mut d_parameters[path.a.clone()];
    gradient_of_a(backend, x, &adapter, d_down.as_slice(), d_a)?;
    match d_x {
        Some((_, d_x)) => add_low_rank_gradient(backend, &adapter, d_down.as_slice(), d_x),
        None => Ok(()),
    }
}

/// `d_x = d_y W`, or adds to it; the rows of `d_y` are `stride` apart.
pub(crate) fn add_base_gradient(
    backend: &CpuBackend,
    d_y: &[f32],
    (rows, stride): (usize, usize),
    weight: &FrozenLinear,
    store: Store,
    d_x: &mut [f32],
) -> Result<()> {
    let inp = weight.inp();
    weight.weight.in_stretches(backend, RowsAre::Terms, |of_weight, stretch| {
        let store = if of_weight.start == 0 { store } else { Store::Add };
        backend.threads.with_parallelism(|parallelism| {
            let d_y = MatRef::strided(&d_y[of_weight.start..], rows, of_weight.len(), stride);
            product(parallelism, MatMut::new(&mut *d_x, rows, inp), store, 1.0, d_y, stretch);
        });
    })
}

/// The matrix of a target, and what to do with its content.
pub(crate) fn open(target: Target<'_, Matrix>) -> (Store, &mut Matrix) {
    match target {
        Target::Overwrite(matrix) => (Store::Overwrite, matrix),
        Target::Add(matrix) => (Store::Add, matrix),
    }
}

/// `d_a = d_downᵀ drop(x)`. With dropout, pieces of rows are masked and added up in order.
fn gradient_of_a(
    backend: &CpuBackend,
    x: &Matrix,
    adapter: &Adapter<'_>,
    d_down: &[f32],
    d_a: &mut [f32],
) -> Result<()> {
    let (rows, inp, rank) = (x.rows, x.cols, adapter.rank);
    let Some(mask) = adapter.mask else {
        backend.threads.with_parallelism(|parallelism| {
            let d_down = MatRef::new(d_down, rows, rank);
            let d_a = MatMut::new(d_a, rank, inp);
            product(parallelism, d_a, Store::Overwrite, 1.0, d_down.t(), MatRef::new(x.data(), rows, inp));
        });
        return Ok(());
    };
    let mut dropped = backend.memory.take(GRADIENT_ROWS.min(rows) * inp, "a masked piece of activations")?;
    for (piece, (x, d_down)) in
        x.data().chunks(GRADIENT_ROWS * inp).zip(d_down.chunks(GRADIENT_ROWS * rank)).enumerate()
    {
        let dropped = &mut dropped.as_mut_slice()[..x.len()];
        let items = x.chunks(MASKED_ROWS * inp).zip(dropped.chunks_mut(MASKED_ROWS * inp)).enumerate().collect();
        backend.threads.for_each(items, |(part, (x, dropped)): (usize, (&[f32], &mut [f32]))| {
            mask.apply(piece * GRADIENT_ROWS + part * MASKED_ROWS, x, inp, dropped);
        });
        let store = if piece == 0 { Store::Overwrite } else { Store::Add };
        let count = x.len() / inp;
        backend.threads.with_parallelism(|parallelism| {
            let d_down = MatRef::new(d_down, count, rank);
            let d_a = MatMut::new(&mut *d_a, rank, inp);
            product(parallelism, d_a, store, 1.0, d_down.t(), MatRef::new(dropped, count, inp));
        });
    }
    Ok(())
}

/// `d_x += drop'(d_down A)`.
fn add_low_rank_gradient(backend: &CpuBackend, adapter: &Adapter<'_>, d_down: &[f32], d_x: &mut Matrix) -> Result<()> {
    let (rows, inp, rank) = (d_x.rows, d_x.cols, adapter.rank);
    let Some(mask) = adapter.mask else {
        backend.threads.with_parallelism(|parallelism| {
            let d_x = MatMut::new(d_x.data_mut(), rows, inp);
            product(parallelism, d_x, Store::Add, 1.0, MatRef::new(d_down, rows, rank), adapter.a(inp));
        });
        return Ok(());
    };
    let items =
        d_down.chunks(MASKED_ROWS * rank).zip(d_x.data_mut().chunks_mut(MASKED_ROWS * inp)).enumerate().collect();
    backend.threads.try_for_each(items, |(piece, (d_down, d_x)): (usize, (&[f32], &mut [f32]))| {
        let count = d_down.len() / rank;
        let mut through = backend.memory.take(d_x.len(), "a masked piece of gradients")?;
        let target = MatMut::new(through.as_mut_slice(), count, inp);
        product(Parallelism::None, target, Store::Overwrite, 1.0, MatRef::new(d_down, count, rank), adapter.a(inp));
        mask.add(piece * MASKED_ROWS, through.as_slice(), inp, d_x);
        Ok(())
    })
}
