//! Frozen linear layers: the product with the frozen weight here, the low-rank path in [`lora`].

use super::blas::{Product, Terms, View, Weight};
use super::buffers::{Matrix, Vector};
use super::check::shape;
use super::weights::{FrozenLinear, Table};
use super::{CudaBackend, lora};
use crate::contract::{LoraPath, Result, Target};

impl Matrix {
    /// The matrix as an operand of a product.
    pub(super) fn view(&self, b: &CudaBackend) -> View {
        View::new(self.buffer.ptr(), self.rows, self.cols, b.storage())
    }
}

impl Table {
    /// The weight as an operand of a product.
    pub(super) fn view(&self, b: &CudaBackend) -> View {
        View::new(self.data.ptr(), self.rows, self.cols, b.storage())
    }
}

/// `y = x wᵀ + bias`; the bias is the address of a vector in the type of `y`.
pub(super) fn product(x: View, w: View, bias: Option<u64>, y: View) -> Product {
    Product { x, weight: Weight::Transposed, w, terms: Terms { add: false, bias }, y }
}

/// `d_x = d_y w`, or on top of what `d_x` holds.
pub(super) fn product_back(d_y: View, w: View, add: bool, d_x: View) -> Product {
    Product { x: d_y, weight: Weight::Plain, w, terms: Terms { add, bias: None }, y: d_x }
}

pub(super) fn forward(
    b: &CudaBackend,
    x: &Matrix,
    weight: &FrozenLinear,
    lora: Option<(&LoraPath<'_, CudaBackend>, &mut Vector)>,
    y: &mut Matrix,
) -> Result<()> {
    shape("linear", "x", x, x.rows, weight.inp())?;
    shape("linear", "y", y, x.rows, weight.out())?;
    b.product(&product(x.view(b), weight.weight.view(b), weight.bias_for(b.storage()), y.view(b)))?;
    match lora {
        Some((path, down)) => lora::forward(b, x, weight, path, down, y),
        None => Ok(()),
    }
}

pub(super) fn backward(
    b: &CudaBackend,
    d_y: &Matrix,
    x: &Matrix,
    weight: &FrozenLinear,
    lora: Option<(&LoraPath<'_, CudaBackend>, &Vector, &mut Vector)>,
    d_x: Option<Target<'_, Matrix>>,
) -> Result<()> {
    shape("linear_backward", "x", x, x.rows, weight.inp())?;
    shape("linear_backward", "d_y", d_y, x.rows, weight.out())?;
    let d_x = match d_x {
        None => None,
        Some(target) => {
            let (add, d_x) = open(target);
            shape("linear_backward", "d_x", d_x, x.rows, weight.inp())?;
            b.product(&product_back(d_y.view(b), weight.weight.view(b), add, d_x.view(b)))?;
            Some(d_x)
        }
    };
    match lora {
        Some((path, down, d_parameters)) => lora::backward(b, d_y, x, weight, path, down, d_parameters, d_x),
        None => Ok(()),
    }
}

/// Whether to add, and the matrix.
pub(super) fn open(target: Target<'_, Matrix>) -> (bool, &mut Matrix) {
    match target {
        Target::Overwrite(matrix) => (false, matrix),
        Target::Add(matrix) => (true, matrix),
    }
}
