//! What the micro-batches of a step add up to: on this rank first, then over all.
//!
//! Exact sums hold gradients as integers, so that neither the number of ranks nor their division of the work shows in the
//! result ([`crate::exact`]). Fast ones hold them as f32: half the traffic, and bits that depend on the number of ranks.
//! Losses and tokens are summed as integers either way.

use crate::WorkerError;
use crate::collective::{DeviceCollective, Operand};
use crate::exact::{self, Flags};
use ballast_kernels::{Backend, Segment};
use ballast_proto::v1::{Reduction, StepShard};

/// Sums of one step.
pub(crate) struct StepSums<B: Backend> {
    gradients: Gradients<B>,
    flags: Flags,
    /// Summed loss as an integer, and the tokens it is of.
    totals: [i64; 2],
    limit_bits: u32,
    /// Flags and totals on their way through the collective.
    device_flags: B::Integers,
    device_totals: B::Integers,
}

enum Gradients<B: Backend> {
    Exact {
        sums: B::Integers,
        /// Flags of one micro-batch, one a tensor.
        met: B::Integers,
        segments: Vec<Segment>,
    },
    Fast {
        mean: B::Reals,
        /// One over the loss tokens of the step.
        weight: f32,
    },
}

/// What a whole step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Totals {
    /// Summed loss, in nats.
    pub(crate) loss: f64,
    /// Tokens it is of.
    pub(crate) tokens: i64,
}

impl<B: Backend> StepSums<B> {
    /// Sums of adapters with so many parameters in so many tensors.
    ///
    /// # Errors
    /// When the device is out of memory, or the run wants sums that this worker does not know.
    pub(crate) fn new(
        backend: &B,
        reduction: Reduction,
        parameters: usize,
        tensors: usize,
    ) -> Result<Self, WorkerError> {
        let (gradients, tensors) = match reduction {
            Reduction::Exact => {
                let (sums, met) = (backend.integers(parameters)?, backend.integers(tensors)?);
                (Gradients::Exact { sums, met, segments: Vec::new() }, tensors)
            }
            // No tensor can overflow.
            Reduction::Fast => (Gradients::Fast { mean: backend.reals(parameters)?, weight: 0.0 }, 0),
            Reduction::Unspecified => {
                return Err(WorkerError::RunSpec("train.reduction is of a kind unknown to this worker".into()));
            }
        };
        let flags = Flags::new(tensors);
        let device_flags = backend.integers(flags.as_slice().len())?;
        let device_totals = backend.integers(2)?;
        Ok(Self { gradients, flags, totals: [0; 2], limit_bits: 0, device_flags, device_totals })
    }

    /// Begins a step anew; `segments` are the adapter's tensors with their fixed-point exponents.
    pub(crate) fn begin(&mut self, backend: &B, shard: &StepShard, all: Vec<Segment>) -> Result<(), WorkerError> {
        self.flags.clear();
        self.totals = [0; 2];
        self.limit_bits = exact::limit_bits(shard.step_micro_batches);
        match &mut self.gradients {
            Gradients::Exact { sums, segments, .. } => {
                *segments = all;
                backend.clear_integers(sums)?;
            }
            Gradients::Fast { mean, weight } => {
                backend.clear_reals(mean)?;
                *weight = (1.0 / shard.step_loss_tokens as f64) as f32;
            }
        }
        Ok(())
    }

    /// Adds the gradient of a micro-batch's summed loss over `tokens` tokens, and that loss, in nats.
    pub(crate) fn add(
        &mut self,
        backend: &B,
        micro_batch: u32,
        gradient: &B::Reals,
        loss: f64,
        tokens: usize,
    ) -> Result<(), WorkerError> {
        let loss = exact::loss_to_fixed(loss, self.limit_bits);
        match &mut self.gradients {
            Gradients::Exact { sums, met, segments } => {
                backend.clear_integers(met)?;
                backend.accumulate_fixed(gradient, segments, self.limit_bits, sums, met)?;
                let mut host = vec![0; segments.len()];
                backend.read_integers(met, &mut host)?;
                self.flags.merge(micro_batch, &host, loss.is_some());
            }
            Gradients::Fast { mean, weight } => {
                backend.add_scaled(mean, *weight, gradient)?;
                self.flags.merge(micro_batch, &[], loss.is_some());
            }
        }
        let [sum, count] = &mut self.totals;
        *sum = sum.wrapping_add(loss.unwrap_or(0));
        *count += tokens as i64;
        Ok(())
    }

    /// Sums up over all ranks; returns when the host has seen every reduction succeed. All ranks do this once in a step,
    /// with or without a micro-batch of their own.
    pub(crate) fn reduce(&mut self, backend: &B, collective: &mut dyn DeviceCollective<B>) -> Result<(), WorkerError> {
        backend.write_integers(&mut self.device_flags, self.flags.as_slice())?;
        backend.write_integers(&mut self.device_totals, &self.totals)?;
        let gradients = match &mut self.gradients {
            Gradients::Exact { sums, .. } => Operand::Sum(sums),
            Gradients::Fast { mean, .. } => Operand::SumReals(mean),
        };
        let (flags, totals) = (Operand::Max(&mut self.device_flags), Operand::Sum(&mut self.device_totals));
        collective.all_reduce(backend, vec![flags, totals, gradients])?;
        backend.read_integers(&self.device_flags, self.flags.as_mut_slice())?;
        Ok(backend.read_integers(&self.device_totals, &mut self.totals)?)
    }

    /// What the micro-batches met.
    pub(crate) fn flags(&self) -> &Flags {
        &self.flags
    }

    /// Loss and tokens.
    pub(crate) fn totals(&self) -> Totals {
        Totals { loss: exact::loss_from_fixed(self.totals[0]), tokens: self.totals[1] }
    }

    /// Leaves the mean gradient of the step in `gradient`.
    pub(crate) fn mean(&mut self, backend: &B, gradient: &mut B::Reals) -> Result<(), WorkerError> {
        match &mut self.gradients {
            Gradients::Exact { sums, segments, .. } => {
                Ok(backend.fixed_to_gradient(sums, segments, self.totals[1] as f64, gradient)?)
            }
            Gradients::Fast { mean, .. } => {
                std::mem::swap(mean, gradient);
                Ok(())
            }
        }
    }
}
