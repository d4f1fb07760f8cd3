//! Forward and backward over one micro-batch, on any backend.

use crate::support::sample;
use ballast_kernels::{Backend, PackedLayout};
use ballast_proto::v1::Sequence;
use ballast_worker::lora::{Adapter, DropoutKey, LoraLayout};
use ballast_worker::model::{Batch, Decoder, Keep, Pass, Rows};
use ballast_worker::progress::Progress;

const DROPOUT: DropoutKey = DropoutKey { seed: 0x0005_eed0_0000_0007, step: 3 };

/// Packed sequences, and what is scored of them.
pub(crate) struct MicroBatch {
    ids: Vec<u32>,
    layout: PackedLayout,
    rows: Vec<u32>,
    targets: Vec<u32>,
}

/// What a training step computes of a micro-batch.
pub(crate) struct Step<B: Backend> {
    /// Of each scored row, in nats.
    pub(crate) losses: B::Reals,
    /// Of the sum of the losses, as the adapter's layout lays it out.
    pub(crate) gradient: B::Reals,
}

impl MicroBatch {
    /// Random sequences of these lengths, half of each scored.
    pub(crate) fn new(lengths: &[usize], vocabulary: usize) -> Self {
        let numbered = lengths.iter().zip(11..);
        let sequences: Vec<Sequence> =
            numbered.map(|(&length, number)| sample(number, length, length / 2, vocabulary)).collect();
        let lengths: Vec<u32> = lengths.iter().map(|&length| length as u32).collect();
        let numbers: Vec<u64> = sequences.iter().map(|sequence| sequence.sample).collect();
        let layout = PackedLayout::new(&lengths, &numbers);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (sequence, first) in sequences.iter().zip(layout.bounds()) {
            for token in sequence.loss[0].start.max(1)..sequence.loss[0].end {
                rows.push(first + token - 1);
                targets.push(sequence.token_ids[token as usize]);
            }
        }
        Self { ids: sequences.into_iter().flat_map(|sequence| sequence.token_ids).collect(), layout, rows, targets }
    }

    /// Ragged, and of more tokens than any tile of a kernel has rows: one sequence crosses a tile of attention, one is a
    /// single token, which nothing is scored of.
    pub(crate) fn ragged(vocabulary: usize) -> Self {
        Self::new(&[70, 1, 43, 19], vocabulary)
    }

    /// Losses and gradient at these parameters of the adapter.
    pub(crate) fn step<B: Backend>(&self, decoder: &Decoder<B>, layout: &LoraLayout, parameters: &[f32]) -> Step<B> {
        let backend = &**decoder.backend();
        let parameters = backend.upload_reals(parameters).unwrap();
        let adapter = Adapter { layout, parameters: &parameters, dropout: Some(DROPOUT) };
        let (batch, progress) = (Batch::new(backend, &self.ids, &self.layout).unwrap(), Progress::new());
        let pass = Pass { batch: &batch, adapter: Some(&adapter), progress: &progress };
        let rows = Rows::new(backend, &self.rows).unwrap();
        let (hidden, tape) = decoder.forward(&pass, &rows, Keep::Everything).unwrap();
        let mut losses = backend.reals(self.rows.len()).unwrap();
        let mut d_hidden = backend.activations(self.rows.len(), decoder.architecture().hidden_size).unwrap();
        let targets = backend.upload_indices(&self.targets).unwrap();
        backend.linear_cross_entropy(&hidden, decoder.head(), &targets, &mut losses, Some(&mut d_hidden)).unwrap();
        let mut gradient = backend.reals(layout.parameters()).unwrap();
        decoder.backward(&d_hidden, &pass, &rows, tape, &mut gradient, &mut |_, _| Ok(())).unwrap();
        Step { losses, gradient }
    }
}
