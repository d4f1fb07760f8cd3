//! Sums and maxima over all ranks.
//!
//! What is summed exactly is integers, so that the result is the same for any number of ranks and any order (design:
//! exactness). [`Solo`] is a world of one; [`TcpRing`] joins processes over TCP, through host memory; NCCL joins CUDA
//! devices. The trainer sees all of them as a [`DeviceCollective`].

mod abort;
mod device;
mod element;
mod error;
mod frame;
mod handshake;
mod nccl;
mod ring;
mod schedule;
mod socket;
mod writer;

pub use abort::AbortHandle;
pub use device::{DeviceCollective, Operand, Reductions};
pub use error::{CollectiveError, Peer};
pub use frame::FrameError;
pub(crate) use nccl::NcclDevice;
pub use nccl::NcclPlace;
pub use ring::{RingConfig, RingPlace, TcpRing};

/// Reductions over the ranks of one generation, of numbers in host memory. Blocking: called from the compute thread.
///
/// All ranks make the same calls in the same order, with vectors of equal length. After an error the collective is
/// broken for good, and `values` holds garbage; the next generation builds a new one.
pub trait Collective: Send {
    /// This process's position in the generation, from 0.
    fn rank(&self) -> usize;

    /// Ranks in the generation.
    fn world_size(&self) -> usize;

    /// Replaces `values` on every rank by the elementwise wrapping sum over all ranks.
    ///
    /// # Errors
    /// When a peer is lost, silent too long or malformed, and when the collective was aborted.
    fn all_reduce_sum(&mut self, values: &mut [i64]) -> Result<(), CollectiveError>;

    /// Replaces `values` on every rank by the elementwise maximum over all ranks.
    ///
    /// # Errors
    /// As [`Collective::all_reduce_sum`].
    fn all_reduce_max(&mut self, values: &mut [i64]) -> Result<(), CollectiveError>;

    /// Replaces `values` on every rank by the elementwise sum over all ranks: the same bits on all of them, in an order
    /// of additions that depends on their number.
    ///
    /// # Errors
    /// As [`Collective::all_reduce_sum`].
    fn all_reduce_sum_reals(&mut self, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// Whether anybody still wants what the ranks compute. Asked often.
    ///
    /// # Errors
    /// [`CollectiveError::Aborted`] when the collective was aborted.
    fn wanted(&self) -> Result<(), CollectiveError> {
        Ok(())
    }
}

impl<C: Collective + ?Sized> Collective for Box<C> {
    fn rank(&self) -> usize {
        (**self).rank()
    }

    fn world_size(&self) -> usize {
        (**self).world_size()
    }

    fn all_reduce_sum(&mut self, values: &mut [i64]) -> Result<(), CollectiveError> {
        (**self).all_reduce_sum(values)
    }

    fn all_reduce_max(&mut self, values: &mut [i64]) -> Result<(), CollectiveError> {
        (**self).all_reduce_max(values)
    }

    fn all_reduce_sum_reals(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        (**self).all_reduce_sum_reals(values)
    }

    fn wanted(&self) -> Result<(), CollectiveError> {
        (**self).wanted()
    }
}

/// A world of one: every reduction is the identity.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce_sum(&mut self, _values: &mut [i64]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_reduce_max(&mut self, _values: &mut [i64]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_reduce_sum_reals(&mut self, _values: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
