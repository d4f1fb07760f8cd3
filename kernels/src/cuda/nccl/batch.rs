//! Reductions: what is to be reduced, and several of them under way at once.

use super::super::buffers::{HalfVector, IntegerVector, Vector};
use super::super::memory::Buffer;
use super::calls::Operand;
use super::{Communicator, CommunicatorError};
use cudarc::nccl::sys::{ncclDataType_t, ncclRedOp_t};
use std::ops::Range;

/// An in-place all-reduce: afterwards every rank's buffer holds the same.
///
/// All ranks make the same reductions, of as many elements, in the same order.
#[derive(Debug)]
pub struct Reduction<'a> {
    what: &'static str,
    buffer: &'a Buffer,
    element_bytes: usize,
    range: Range<usize>,
    len: usize,
    piece: usize,
    data: ncclDataType_t,
    reduction: ncclRedOp_t,
}

impl<'a> Reduction<'a> {
    /// The elementwise wrapping sum over all ranks.
    #[must_use]
    pub fn sum(values: &'a mut IntegerVector) -> Self {
        Self::integers("sum of integers", values, ncclRedOp_t::ncclSum)
    }

    /// The elementwise maximum over all ranks.
    #[must_use]
    pub fn max(values: &'a mut IntegerVector) -> Self {
        Self::integers("maximum of integers", values, ncclRedOp_t::ncclMax)
    }

    /// The elementwise sum over all ranks in f32, in an order that NCCL chooses: every rank gets the same bits, but
    /// another number of ranks may get others.
    #[must_use]
    pub fn sum_reals(values: &'a mut Vector) -> Self {
        let (len, data, reduction) = (values.len, ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum);
        Self::whole("sum of reals", &values.buffer, size_of::<f32>(), len, data, reduction)
    }

    /// The elementwise sum over all ranks in bf16: each addition rounds.
    #[must_use]
    pub fn sum_halves(values: &'a mut HalfVector) -> Self {
        let (len, data, reduction) = (values.len, ncclDataType_t::ncclBfloat16, ncclRedOp_t::ncclSum);
        Self::whole("sum of halves", &values.buffer, size_of::<u16>(), len, data, reduction)
    }

    fn integers(what: &'static str, values: &'a mut IntegerVector, reduction: ncclRedOp_t) -> Self {
        Self::whole(what, &values.buffer, size_of::<i64>(), values.len, ncclDataType_t::ncclInt64, reduction)
    }

    fn whole(
        what: &'static str,
        buffer: &'a Buffer,
        element_bytes: usize,
        len: usize,
        data: ncclDataType_t,
        reduction: ncclRedOp_t,
    ) -> Self {
        Self { what, buffer, element_bytes, range: 0..len, len, piece: usize::MAX, data, reduction }
    }

    /// Only these elements; the others stay as they are.
    #[must_use]
    pub fn of(mut self, range: Range<usize>) -> Self {
        self.range = range;
        self
    }

    /// As several collectives of at most so many elements. Progress shows only between collectives, so pieces are for
    /// reductions that may take long.
    #[must_use]
    pub fn in_pieces_of(mut self, elements: usize) -> Self {
        self.piece = elements;
        self
    }

    /// # Errors
    /// [`CommunicatorError::Setup`] when the range is not within the vector, or a piece has no elements.
    pub(super) fn check(&self) -> Result<(), CommunicatorError> {
        let Range { start, end } = self.range;
        if start > end || end > self.len || self.piece == 0 {
            let (what, len, piece) = (self.what, self.len, self.piece);
            let detail = format!("{what}: elements {start}..{end} of {len}, in pieces of {piece}");
            return Err(CommunicatorError::Setup(detail));
        }
        Ok(())
    }

    pub(super) fn buffer(&self) -> &Buffer {
        self.buffer
    }

    /// The collectives, each with a name for messages. The reduction was checked.
    pub(super) fn operands(&self) -> impl Iterator<Item = (Operand, String)> + '_ {
        self.range.clone().step_by(self.piece).map(|start| {
            let count = self.piece.min(self.range.end - start);
            let address = self.buffer.ptr() + (start * self.element_bytes) as u64;
            let operand = Operand { address, count, data: self.data, reduction: self.reduction };
            (operand, format!("the {} over elements {start}..{} of {}", self.what, start + count, self.len))
        })
    }
}

/// Reductions that are under way together. The vectors stay borrowed until [`Batch::wait`]; all else on host and device
/// may go on meanwhile.
///
/// # When it fails
/// After an error the vectors of the batch hold unspecified values, and the communicator is broken for good. So it is
/// when a batch that has something under way is dropped without being waited for.
#[derive(Debug)]
#[must_use = "dropping a batch breaks the communicator"]
pub struct Batch<'a> {
    communicator: &'a mut Communicator,
}

impl<'a> Batch<'a> {
    pub(super) fn new(communicator: &'a mut Communicator) -> Self {
        Self { communicator }
    }

    /// Enqueues a reduction behind all that the backend has enqueued so far, and behind the batch's earlier ones. Does
    /// not wait for the other ranks, but for a communicator's first, with which NCCL makes its connections. Its timeout runs from here, or from the end of the reduction before it.
    ///
    /// # Errors
    /// [`CommunicatorError::Setup`] when the elements are not there or belong to another backend: then nothing has
    /// changed. Else as [`Batch::wait`].
    pub fn enqueue(&mut self, reduction: Reduction<'a>) -> Result<(), CommunicatorError> {
        self.communicator.enqueue(&reduction)
    }

    /// Waits until all reductions are done, which this rank then knows of itself; other ranks may yet fail.
    /// `on_progress` is called for each collective that has ended, and only then.
    ///
    /// # Errors
    /// [`CommunicatorError`], any but `Setup`: nothing of the batch is to be used then. No work of the reductions is
    /// left on the device, unless the error is [`CommunicatorError::Device`]: then the process is to end.
    pub fn wait(self, on_progress: impl FnMut()) -> Result<(), CommunicatorError> {
        self.communicator.wait(on_progress)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.communicator.abandon();
    }
}
