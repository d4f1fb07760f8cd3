//! Collectives as the trainer sees them: of numbers where the backend has them, under way while it goes on computing.

use super::{Collective, CollectiveError};
use crate::WorkerError;
use ballast_kernels::{Backend, KernelError};

/// A vector to be reduced in place, elementwise, over all ranks.
pub enum Operand<'a, B: Backend> {
    /// Becomes the wrapping sum.
    Sum(&'a mut B::Integers),
    /// Becomes the maximum.
    Max(&'a mut B::Integers),
    /// Becomes the sum in f32: the same bits on all ranks, in an order of additions that depends on their number.
    SumReals(&'a mut B::Reals),
    /// Becomes the sum in bf16, likewise. Host memory is summed in f32, and the result rounded.
    SumHalves(&'a mut B::Halves),
}

/// Reductions over the ranks of one generation, of a backend's own vectors.
pub trait DeviceCollective<B: Backend>: Send {
    /// Begins reductions that are waited for together.
    fn begin<'a>(&'a mut self, backend: &'a B) -> Box<dyn Reductions<'a, B> + 'a>;
}

/// Reductions under way. All ranks enqueue the same operands, of equal length, in the same order.
///
/// Dropped before they were waited for, or after an error, they leave the collective broken for good and their operands
/// full of garbage.
pub trait Reductions<'a, B: Backend> {
    /// Enqueues a reduction of what the operand will be once the backend has done all that was asked of it so far. The caller
    /// goes on at once: other ranks may come as late as they like.
    ///
    /// # Errors
    /// As [`Reductions::wait`].
    fn enqueue(&mut self, operand: Operand<'a, B>) -> Result<(), WorkerError>;

    /// Whether anybody still wants what the ranks compute. Asked often.
    ///
    /// # Errors
    /// When the generation was aborted.
    fn wanted(&self) -> Result<(), WorkerError> {
        Ok(())
    }

    /// Returns when the host has seen every reduction succeed and the generation is alive. Blocking: called from the
    /// compute thread.
    ///
    /// # Errors
    /// When a peer is lost, silent too long or malformed, when the generation was aborted, and when the device fails.
    fn wait(self: Box<Self>) -> Result<(), WorkerError>;
}

/// A collective of host memory serves every backend: numbers come to the host, are reduced there, and go back. It needs the
/// compute thread, so nothing of it overlaps; all operands travel as one.
impl<B: Backend, C: Collective + ?Sized> DeviceCollective<B> for C {
    fn begin<'a>(&'a mut self, backend: &'a B) -> Box<dyn Reductions<'a, B> + 'a> {
        let (sums, maxima, reals, halves) = Default::default();
        Box::new(ThroughHost { backend, collective: self, sums, maxima, reals, halves })
    }
}

struct ThroughHost<'a, B: Backend, C: ?Sized> {
    backend: &'a B,
    collective: &'a mut C,
    sums: Vec<&'a mut B::Integers>,
    maxima: Vec<&'a mut B::Integers>,
    reals: Vec<&'a mut B::Reals>,
    halves: Vec<&'a mut B::Halves>,
}

impl<'a, B: Backend, C: Collective + ?Sized> Reductions<'a, B> for ThroughHost<'a, B, C> {
    fn enqueue(&mut self, operand: Operand<'a, B>) -> Result<(), WorkerError> {
        match operand {
            Operand::Sum(values) => self.sums.push(values),
            Operand::Max(values) => self.maxima.push(values),
            Operand::SumReals(values) => self.reals.push(values),
            Operand::SumHalves(values) => self.halves.push(values),
        }
        Ok(())
    }

    fn wanted(&self) -> Result<(), WorkerError> {
        Ok(self.collective.wanted()?)
    }

    fn wait(self: Box<Self>) -> Result<(), WorkerError> {
        let Self { backend, collective, mut sums, mut maxima, reals, halves } = *self;
        if collective.world_size() == 1 {
            return Ok(());
        }
        integers(backend, &mut maxima, |host| collective.all_reduce_max(host))?;
        integers(backend, &mut sums, |host| collective.all_reduce_sum(host))?;
        let mut reduce = |host: &mut [f32]| collective.all_reduce_sum_reals(host);
        floats(reals, |part| backend.read_reals(part), |part, values| backend.write_reals(part, values), &mut reduce)?;
        floats(halves, |part| backend.read_halves(part), |part, values| backend.write_halves(part, values), &mut reduce)
    }
}

/// Brings vectors of floats to the host, reduces them there as one and puts them back.
fn floats<V>(
    vectors: Vec<&mut V>,
    read: impl Fn(&V) -> Result<Vec<f32>, KernelError>,
    write: impl Fn(&mut V, &[f32]) -> Result<(), KernelError>,
    reduce: &mut dyn FnMut(&mut [f32]) -> Result<(), CollectiveError>,
) -> Result<(), WorkerError> {
    if vectors.is_empty() {
        return Ok(());
    }
    let parts = vectors.iter().map(|part| read(part)).collect::<Result<Vec<_>, _>>()?;
    let mut host = parts.concat();
    reduce(&mut host)?;
    let mut rest = &host[..];
    for (vector, part) in vectors.into_iter().zip(parts) {
        let (values, after) = rest.split_at(part.len());
        write(vector, values)?;
        rest = after;
    }
    Ok(())
}

/// Brings vectors of integers to the host, reduces them there as one and puts them back.
fn integers<B: Backend>(
    backend: &B,
    vectors: &mut [&mut B::Integers],
    reduce: impl FnOnce(&mut [i64]) -> Result<(), CollectiveError>,
) -> Result<(), WorkerError> {
    if vectors.is_empty() {
        return Ok(());
    }
    let lengths: Vec<usize> = vectors.iter().map(|vector| backend.integers_len(vector)).collect();
    let mut host = vec![0; lengths.iter().sum()];
    let mut rest = &mut host[..];
    for (vector, &length) in vectors.iter().zip(&lengths) {
        let (values, after) = rest.split_at_mut(length);
        backend.read_integers(vector, values)?;
        rest = after;
    }
    reduce(&mut host)?;
    let mut rest = &host[..];
    for (vector, length) in vectors.iter_mut().zip(lengths) {
        let (values, after) = rest.split_at(length);
        backend.write_integers(vector, values)?;
        rest = after;
    }
    Ok(())
}
