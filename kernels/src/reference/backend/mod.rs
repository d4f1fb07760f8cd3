//! The contract over the reference's functions: f64 in memory and arithmetic, on one thread, for tests alone.
//!
//! A model over this backend is its own reference. Values meet f32 only where the contract says f32: uploads, reads, fixed
//! point. [`Rounding::Bf16`] makes it what it is to compute in bf16 straightforwardly: every activation and every frozen
//! weight is rounded when it is stored, and each operation is otherwise exact.

mod attention;
mod buffers;
mod contract;
mod fixed;
mod head;
mod linear;
#[cfg(test)]
mod tests;

pub use buffers::{Cache, FrozenLinear, Matrix, Packing, RotaryTable, Table};

use super::Rounding;
use crate::Target;

/// The f64 reference as a backend.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceBackend {
    rounding: Rounding,
}

impl ReferenceBackend {
    /// A backend that stores activations and frozen weights so.
    #[must_use]
    pub fn new(rounding: Rounding) -> Self {
        Self { rounding }
    }

    /// The values, as stored.
    fn stored(&self, values: impl IntoIterator<Item = f64>) -> Vec<f64> {
        values.into_iter().map(|value| self.rounding.round(value)).collect()
    }

    /// Puts a gradient where it goes.
    fn give(&self, gradient: Vec<f64>, target: Target<'_, Matrix>) {
        match target {
            Target::Overwrite(matrix) => matrix.values = self.stored(gradient),
            Target::Add(matrix) => {
                matrix.values = self.stored(matrix.values.iter().zip(gradient).map(|(before, more)| before + more));
            }
        }
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}
