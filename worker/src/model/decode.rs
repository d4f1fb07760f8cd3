//! Forward passes that continue a sequence, with cached keys and values.

use super::forward::Keys;
use super::{Batch, Decoder, Pass, Rows};
use crate::WorkerError;
use crate::lora::Adapter;
use crate::progress::Progress;
use ballast_kernels::{Backend, PackedLayout};

/// Keys and values of all layers of one sequence.
pub struct DecodeCache<B: Backend> {
    layers: Vec<B::KvCache>,
    tokens: u32,
}

impl<B: Backend> Decoder<B> {
    /// An empty cache for a sequence of up to `capacity` tokens.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn cache(&self, capacity: usize) -> Result<DecodeCache<B>, WorkerError> {
        let layers = (0..self.layers.len()).map(|_| self.backend.kv_cache(capacity, &self.attention));
        Ok(DecodeCache { layers: layers.collect::<Result<_, _>>()?, tokens: 0 })
    }

    /// Appends `ids` to the sequence and gives the logits after the last of them: `[vocab]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn continue_sequence(
        &self,
        ids: &[u32],
        cache: &mut DecodeCache<B>,
        adapter: Option<&Adapter<'_, B>>,
        progress: &Progress,
    ) -> Result<Vec<f32>, WorkerError> {
        let layout = PackedLayout::continuing(cache.tokens, ids.len() as u32);
        let batch = Batch::new(&*self.backend, ids, &layout)?;
        let pass = Pass { batch: &batch, adapter, progress };
        let mut residual = self.embed(&pass)?;
        for (layer, keys) in cache.layers.iter_mut().enumerate() {
            residual = self.layer_forward(layer, residual, &pass, Keys::Cached(keys))?.0;
        }
        cache.tokens += ids.len() as u32;
        let last = Rows::new(&*self.backend, &[ids.len().saturating_sub(1) as u32])?;
        let (hidden, _) = self.finish(residual, &last)?;
        self.logits(&hidden, 1)
    }

    /// The logits of `rows` hidden states: `[rows, vocab]`, row-major.
    ///
    /// # Errors
    /// When the device fails.
    pub fn logits(&self, hidden: &B::Activations, rows: usize) -> Result<Vec<f32>, WorkerError> {
        let mut logits = self.backend.reals(rows * self.architecture.vocab_size)?;
        self.backend.logits(hidden, &self.head, &mut logits)?;
        Ok(self.backend.read_reals(&logits)?)
    }
}
