//! Collectives as the trainer sees them: of numbers where the backend has them.

use super::{Collective, CollectiveError};
use crate::WorkerError;
use ballast_kernels::Backend;

/// A vector to be reduced in place, elementwise, over all ranks.
pub enum Operand<'a, B: Backend> {
    /// Becomes the wrapping sum.
    Sum(&'a mut B::Integers),
    /// Becomes the maximum.
    Max(&'a mut B::Integers),
    /// Becomes the sum in f32: the same bits on all ranks, in an order of additions that depends on their number.
    SumReals(&'a mut B::Reals),
}

/// Reductions over the ranks of one generation, of a backend's own vectors. Blocking: called from the compute thread.
pub trait DeviceCollective<B: Backend>: Send {
    /// Reduces all operands; returns when the host has seen every reduction succeed and the generation is alive. All
    /// ranks reduce the same operands, of equal length, in the same order.
    ///
    /// # Errors
    /// When a peer is lost, silent too long or malformed, when the generation was aborted, and when the device fails.
    /// Then the collective is broken for good, and all operands hold garbage.
    fn all_reduce(&mut self, backend: &B, operands: Vec<Operand<'_, B>>) -> Result<(), WorkerError>;
}

/// A collective of host memory serves every backend: numbers come to the host, are reduced there, and go back.
impl<B: Backend, C: Collective + ?Sized> DeviceCollective<B> for C {
    fn all_reduce(&mut self, backend: &B, operands: Vec<Operand<'_, B>>) -> Result<(), WorkerError> {
        if self.world_size() == 1 {
            return Ok(());
        }
        for operand in operands {
            match operand {
                Operand::Sum(values) => through_host(backend, values, |host| self.all_reduce_sum(host))?,
                Operand::Max(values) => through_host(backend, values, |host| self.all_reduce_max(host))?,
                Operand::SumReals(values) => {
                    let mut host = backend.read_reals(values)?;
                    self.all_reduce_sum_reals(&mut host)?;
                    backend.write_reals(values, &host)?;
                }
            }
        }
        Ok(())
    }
}

/// Brings a vector of integers to the host, reduces it there and puts it back.
fn through_host<B: Backend>(
    backend: &B,
    values: &mut B::Integers,
    reduce: impl FnOnce(&mut [i64]) -> Result<(), CollectiveError>,
) -> Result<(), WorkerError> {
    let mut host = vec![0; backend.integers_len(values)];
    backend.read_integers(values, &mut host)?;
    reduce(&mut host)?;
    Ok(backend.write_integers(values, &host)?)
}
