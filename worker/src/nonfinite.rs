//! Micro-batches whose loss or gradient is not finite: how they are told of, and, in tests, made.

use crate::WorkerError;
use ballast_kernels::{Backend, KernelError};
use ballast_proto::fault;
use ballast_proto::v1::{MicroBatch, NonFinite, StepShard};

/// All micro-batches of a step, where only their sum tells that a gradient is not finite.
pub(crate) fn any_gradient(shard: &StepShard) -> Vec<NonFinite> {
    let of = |micro_batch| NonFinite { micro_batch, loss: false, gradient: true };
    (0..shard.step_micro_batches).map(of).collect()
}

/// The error of a step that is not to be skipped; names the first micro-batch, and its samples where this rank has it.
pub(crate) fn error(shard: &StepShard, not_finite: &[NonFinite]) -> WorkerError {
    let first = not_finite.first().map_or(0, |first| first.micro_batch);
    let place = match shard.micro_batches.iter().find(|batch| batch.index == first) {
        Some(batch) => {
            let samples: Vec<String> = samples(batch).map(|sample| sample.to_string()).collect();
            format!("micro-batch {first} (samples {})", samples.join(", "))
        }
        None => format!("micro-batch {first}, on another rank"),
    };
    WorkerError::NonFinite { step: shard.step, place }
}

/// What a test wants to be no number in a micro-batch, named by one of its samples: so it is the same for any number of ranks, and
/// when the step is done again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Poison {
    pub(crate) loss: bool,
    pub(crate) gradient: bool,
}

impl Poison {
    /// Of this micro-batch.
    pub(crate) fn of(batch: &MicroBatch) -> Self {
        let struck = |point| samples(batch).any(|sample| fault::poisons(point, sample));
        Self { loss: struck("loss"), gradient: struck("gradient") }
    }

    /// The gradient of the hidden states, `[rows, cols]`, from which every gradient of an adapter comes.
    pub(crate) fn gradient<B: Backend>(
        self,
        backend: &B,
        d_hidden: B::Activations,
        rows: usize,
        cols: usize,
    ) -> Result<B::Activations, KernelError> {
        if self.gradient { backend.upload_activations(&vec![f32::NAN; rows * cols], rows, cols) } else { Ok(d_hidden) }
    }

    /// The summed loss.
    pub(crate) fn loss(self, loss: f64) -> f64 {
        if self.loss { f64::NAN } else { loss }
    }
}

fn samples(batch: &MicroBatch) -> impl Iterator<Item = u64> {
    batch.sequences.iter().map(|sequence| sequence.sample)
}
