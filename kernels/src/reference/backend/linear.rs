//! Frozen linear layers with their low-rank path.

use super::ReferenceBackend;
use super::buffers::{FrozenLinear, Matrix, Packing};
use crate::check::{self, length, shape};
use crate::contract::{LoraPath, Result, Target};
use crate::reference::{self, LinearShape, Lora};

/// The factors on the path's input.
fn mask(path: &LoraPath<'_, ReferenceBackend>, x: &Matrix) -> Vec<f64> {
    match &path.dropout {
        None => vec![1.0; x.values.len()],
        Some(d) => reference::dropout_mask(&d.packing.layout, x.cols, d.probability, d.seed, d.step, d.module),
    }
}

/// The path, as the reference takes it.
fn lora<'a>(path: &'a LoraPath<'_, ReferenceBackend>, mask: &'a [f64]) -> Lora<'a> {
    let (a, b) = (&path.parameters[path.a.clone()], &path.parameters[path.b.clone()]);
    Lora { a, b, rank: path.rank, scaling: f64::from(path.scaling), mask }
}

fn check_path(
    operation: &'static str,
    path: &LoraPath<'_, ReferenceBackend>,
    x: &Matrix,
    weight: &FrozenLinear,
    down: usize,
) -> Result<()> {
    let shape = (weight.out(), weight.inp());
    check::lora_path(operation, path, path.parameters.len(), shape, x.rows, Packing::tokens)?;
    length(operation, "down", down, x.rows * path.rank)
}

fn sizes(x: &Matrix, weight: &FrozenLinear) -> LinearShape {
    LinearShape { rows: x.rows, inp: weight.inp(), out: weight.out() }
}

pub(super) fn forward(
    b: &ReferenceBackend,
    x: &Matrix,
    weight: &FrozenLinear,
    path: Option<(&LoraPath<'_, ReferenceBackend>, &mut Vec<f64>)>,
    y: &mut Matrix,
) -> Result<()> {
    shape("linear", "x", x, x.rows, weight.inp())?;
    shape("linear", "y", y, x.rows, weight.out())?;
    let (sizes, bias) = (sizes(x, weight), weight.bias.as_deref());
    let values = match path {
        None => reference::linear(sizes, &x.values, &weight.weight.values, bias, None).0,
        Some((path, down)) => {
            check_path("linear", path, x, weight, down.len())?;
            let mask = mask(path, x);
            let path = Some(lora(path, &mask));
            let (values, saved) = reference::linear(sizes, &x.values, &weight.weight.values, bias, path);
            *down = saved;
            values
        }
    };
    y.values = b.stored(values);
    Ok(())
}

/// The path's inner product is formed anew, not taken from `down`.
pub(super) fn backward(
    b: &ReferenceBackend,
    d_y: &Matrix,
    x: &Matrix,
    weight: &FrozenLinear,
    path: Option<(&LoraPath<'_, ReferenceBackend>, &Vec<f64>, &mut Vec<f64>)>,
    d_x: Option<Target<'_, Matrix>>,
) -> Result<()> {
    const OPERATION: &str = "linear_backward";
    shape(OPERATION, "x", x, x.rows, weight.inp())?;
    shape(OPERATION, "d_y", d_y, x.rows, weight.out())?;
    if let Some(Target::Overwrite(d_x) | Target::Add(d_x)) = &d_x {
        shape(OPERATION, "d_x", d_x, x.rows, weight.inp())?;
    }
    let sizes = sizes(x, weight);
    let gradients = match path {
        None => reference::linear_backward(sizes, &d_y.values, &x.values, &weight.weight.values, None),
        Some((path, down, d_parameters)) => {
            check_path(OPERATION, path, x, weight, down.len())?;
            length(OPERATION, "d_parameters", d_parameters.len(), path.parameters.len())?;
            let mask = mask(path, x);
            let lora = Some(lora(path, &mask));
            let gradients = reference::linear_backward(sizes, &d_y.values, &x.values, &weight.weight.values, lora);
            d_parameters[path.a.clone()].copy_from_slice(&gradients.d_a);
            d_parameters[path.b.clone()].copy_from_slice(&gradients.d_b);
            gradients
        }
    };
    if let Some(target) = d_x {
        b.give(gradients.d_x, target);
    }
    Ok(())
}
