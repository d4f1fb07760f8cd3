//! What the micro-batches of a step add up to: on this rank first, then over all.
//!
//! Exact sums hold gradients as integers, so that neither the number of ranks nor their division of the work shows in the
//! result ([`crate::exact`]). Fast ones hold them as f32, and send them as f32 or, over NCCL, bf16: half or a quarter of the
//! traffic, and bits that depend on the number of ranks.
//! Losses and tokens are summed as integers either way.
//!
//! Each layer's sums are a vector of their own, a bucket. With the last micro-batch of a rank they are complete from the top
//! layer down, and each goes to the collective at once: it is reduced while the layers below are still computed.

use crate::WorkerError;
use crate::collective::{DeviceCollective, Operand, Reductions};
use crate::exact::{self, Flags};
use crate::lora::{LayerTensors, LoraLayout};
use ballast_kernels::{Backend, Segment};
use ballast_proto::v1::{Reduction, StepShard};

/// Sums of one step.
pub(crate) struct StepSums<B: Backend> {
    gradients: Gradients<B>,
    /// What each bucket holds.
    layers: Vec<LayerTensors>,
    flags: Flags,
    /// Summed loss as an integer, all tokens, and those whose loss it is.
    totals: [i64; 3],
    limit_bits: u32,
    /// Flags and totals on their way through the collective.
    device_flags: B::Integers,
    device_totals: B::Integers,
}

enum Gradients<B: Backend> {
    Exact {
        buckets: Vec<B::Integers>,
        /// Flags of one micro-batch, one a tensor.
        met: B::Integers,
        segments: Vec<Segment>,
    },
    Fast {
        /// Of the mean.
        buckets: Vec<B::Reals>,
        /// One over the loss tokens of the step.
        weight: f32,
        /// What is sent instead, and comes back, where sums travel as bf16.
        wire: Option<Vec<B::Halves>>,
    },
}

/// What a whole step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Totals {
    /// Summed loss, in nats.
    pub(crate) loss: f64,
    /// Tokens that bear loss.
    pub(crate) tokens: i64,
    /// Those whose loss it is: all but the ones of micro-batches whose loss is not finite.
    pub(crate) finite: i64,
}

impl<B: Backend> StepSums<B> {
    /// Sums of adapters laid out so.
    ///
    /// # Errors
    /// When the device is out of memory, or the run wants sums that this worker does not know.
    pub(crate) fn new(backend: &B, reduction: Reduction, layout: &LoraLayout) -> Result<Self, WorkerError> {
        let (layers, tensors) = (layout.layers().to_vec(), layout.tensors().len());
        let lengths = layers.iter().map(|layer| layer.elements.len());
        let (gradients, tensors) = match reduction {
            Reduction::Exact => {
                let buckets = lengths.map(|len| backend.integers(len)).collect::<Result<_, _>>()?;
                (Gradients::Exact { buckets, met: backend.integers(tensors)?, segments: Vec::new() }, tensors)
            }
            // No tensor can overflow.
            Reduction::Fast | Reduction::FastBf16 => {
                let buckets = lengths.clone().map(|len| backend.reals(len)).collect::<Result<_, _>>()?;
                let wire = || lengths.map(|len| backend.halves(len)).collect::<Result<_, _>>();
                let wire = (reduction == Reduction::FastBf16).then(wire).transpose()?;
                (Gradients::Fast { buckets, weight: 0.0, wire }, 0)
            }
            Reduction::Unspecified => {
                return Err(WorkerError::RunSpec("train.reduction is of a kind unknown to this worker".into()));
            }
        };
        let flags = Flags::new(tensors);
        let device_flags = backend.integers(flags.as_slice().len())?;
        let device_totals = backend.integers(3)?;
        Ok(Self { gradients, layers, flags, totals: [0; 3], limit_bits: 0, device_flags, device_totals })
    }

    /// Begins a step anew; `all` are the adapter's tensors with their fixed-point exponents.
    pub(crate) fn begin<'a>(
        &'a mut self,
        backend: &'a B,
        collective: &'a mut dyn DeviceCollective<B>,
        shard: &StepShard,
        all: Vec<Segment>,
    ) -> Result<Accumulation<'a, B>, WorkerError> {
        let Self { gradients, layers, flags, totals, limit_bits, device_flags, device_totals } = self;
        flags.begin(shard.step_micro_batches);
        *totals = [0; 3];
        *limit_bits = exact::limit_bits(shard.step_micro_batches);
        let pending = match gradients {
            Gradients::Exact { buckets, met, segments } => {
                *segments = all;
                buckets.iter_mut().try_for_each(|bucket| backend.clear_integers(bucket))?;
                Pending::Exact { buckets, met, segments }
            }
            Gradients::Fast { buckets, weight, wire } => {
                *weight = (1.0 / shard.step_loss_tokens as f64) as f32;
                buckets.iter_mut().try_for_each(|bucket| backend.clear_reals(bucket))?;
                Pending::Fast { buckets, weight: *weight, wire: wire.as_deref_mut() }
            }
        };
        let reductions = collective.begin(backend);
        let limit_bits = *limit_bits;
        Ok(Accumulation {
            backend,
            reductions,
            pending,
            layers,
            flags,
            totals,
            limit_bits,
            device_flags,
            device_totals,
        })
    }

    /// Takes over what all ranks have met together, once every reduction has succeeded.
    pub(crate) fn read(&mut self, backend: &B) -> Result<(), WorkerError> {
        backend.read_integers(&self.device_flags, self.flags.as_mut_slice())?;
        Ok(backend.read_integers(&self.device_totals, &mut self.totals)?)
    }

    /// What the micro-batches met.
    pub(crate) fn flags(&self) -> &Flags {
        &self.flags
    }

    /// Loss and tokens.
    pub(crate) fn totals(&self) -> Totals {
        let [loss, tokens, finite] = self.totals;
        Totals { loss: exact::loss_from_fixed(loss), tokens, finite }
    }

    /// Leaves the mean gradient of the step in `gradient`.
    pub(crate) fn mean(&self, backend: &B, gradient: &mut B::Reals) -> Result<(), WorkerError> {
        match &self.gradients {
            Gradients::Exact { buckets, segments, .. } => {
                for (sums, layer) in buckets.iter().zip(&self.layers) {
                    let tokens = self.totals[1] as f64;
                    backend.fixed_to_gradient(sums, &layer.bucket(segments), tokens, gradient)?;
                }
            }
            Gradients::Fast { wire: Some(wire), .. } => {
                for (mean, layer) in wire.iter().zip(&self.layers) {
                    backend.widen(mean, gradient, layer.elements.start)?;
                }
            }
            Gradients::Fast { buckets, wire: None, .. } => {
                for (mean, layer) in buckets.iter().zip(&self.layers) {
                    backend.copy_reals(mean, gradient, layer.elements.start)?;
                }
            }
        }
        Ok(())
    }
}

/// The sums of a step while micro-batches are added to them, and their reductions.
pub(crate) struct Accumulation<'a, B: Backend> {
    backend: &'a B,
    reductions: Box<dyn Reductions<'a, B> + 'a>,
    pending: Pending<'a, B>,
    layers: &'a [LayerTensors],
    flags: &'a mut Flags,
    totals: &'a mut [i64; 3],
    limit_bits: u32,
    device_flags: &'a mut B::Integers,
    device_totals: &'a mut B::Integers,
}

/// The buckets, from the lowest layer up, that the collective does not have yet.
enum Pending<'a, B: Backend> {
    Exact { buckets: &'a mut [B::Integers], met: &'a mut B::Integers, segments: &'a [Segment] },
    Fast { buckets: &'a mut [B::Reals], weight: f32, wire: Option<&'a mut [B::Halves]> },
}

impl<'a, B: Backend> Accumulation<'a, B> {
    /// Before a micro-batch is added.
    pub(crate) fn begin_micro_batch(&mut self) -> Result<(), WorkerError> {
        self.reductions.wanted()?;
        match &mut self.pending {
            Pending::Exact { met, .. } => Ok(self.backend.clear_integers(met)?),
            Pending::Fast { .. } => Ok(()),
        }
    }

    /// Adds a layer of the gradient of a micro-batch's summed loss. With the rank's `last` micro-batch layers come from the top
    /// down, and each goes to the collective.
    pub(crate) fn add_layer(&mut self, layer: usize, gradient: &B::Reals, last: bool) -> Result<(), WorkerError> {
        self.reductions.wanted()?;
        let (backend, place) = (self.backend, &self.layers[layer]);
        match &mut self.pending {
            Pending::Exact { buckets, met, segments } => {
                let (bucket, sums) = (place.bucket(segments), &mut buckets[layer]);
                backend.accumulate_fixed(gradient, &bucket, self.limit_bits, sums, met)?;
            }
            Pending::Fast { buckets, weight, .. } => {
                backend.add_scaled(&mut buckets[layer], *weight, gradient, place.elements.start)?;
            }
        }
        if last { self.reduce_down_to(layer) } else { Ok(()) }
    }

    /// After all layers of a micro-batch: its summed loss, in nats, over `tokens` tokens.
    pub(crate) fn end_micro_batch(&mut self, index: u32, loss: f64, tokens: usize) -> Result<(), WorkerError> {
        let loss = exact::loss_to_fixed(loss, self.limit_bits);
        let mut met_here = Vec::new();
        if let Pending::Exact { met, segments, .. } = &mut self.pending {
            met_here.resize(segments.len(), 0);
            self.backend.read_integers(met, &mut met_here)?;
        }
        self.flags.merge(index, &met_here, loss.is_some());
        let [sum, count, finite] = &mut *self.totals;
        *sum = sum.wrapping_add(loss.unwrap_or(0));
        *count += tokens as i64;
        *finite += if loss.is_some() { tokens as i64 } else { 0 };
        Ok(())
    }

    /// Hands the buckets from the top down to this layer's to the collective.
    fn reduce_down_to(&mut self, layer: usize) -> Result<(), WorkerError> {
        while let Some(operand) = self.pending.pop_from(layer, self.backend)? {
            self.reductions.enqueue(operand)?;
        }
        Ok(())
    }

    /// After the last micro-batch, or without any: what the collective does not have yet goes to it. All ranks do this once
    /// in a step. Then the reductions are to be waited for.
    pub(crate) fn finish(mut self) -> Result<Box<dyn Reductions<'a, B> + 'a>, WorkerError> {
        self.reduce_down_to(0)?;
        self.backend.write_integers(self.device_flags, self.flags.as_slice())?;
        self.backend.write_integers(self.device_totals, &*self.totals)?;
        self.reductions.enqueue(Operand::Max(self.device_flags))?;
        self.reductions.enqueue(Operand::Sum(self.device_totals))?;
        Ok(self.reductions)
    }
}

impl<'a, B: Backend> Pending<'a, B> {
    /// The topmost bucket, if it is of this layer or of one above.
    fn pop_from(&mut self, layer: usize, backend: &B) -> Result<Option<Operand<'a, B>>, WorkerError> {
        match self {
            Self::Exact { buckets, .. } => Ok(pop(buckets, layer).map(Operand::Sum)),
            Self::Fast { buckets, wire: None, .. } => Ok(pop(buckets, layer).map(Operand::SumReals)),
            Self::Fast { buckets, wire: Some(wire), .. } => match (pop(buckets, layer), pop(wire, layer)) {
                (Some(sums), Some(sent)) => {
                    backend.narrow(sums, sent)?;
                    Ok(Some(Operand::SumHalves(sent)))
                }
                _ => Ok(None),
            },
        }
    }
}

fn pop<'a, T>(buckets: &mut &'a mut [T], layer: usize) -> Option<&'a mut T> {
    if buckets.len() <= layer { None } else { buckets.split_off_last_mut() }
}
