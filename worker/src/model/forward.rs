//! The forward pass, and what it keeps for the backward pass.

use super::{Decoder, Pass, Rows};
use crate::WorkerError;
use ballast_basemodel::Projection;
use ballast_kernels::{Backend, Direction, NormKind};

/// How much of each layer a forward pass keeps for the backward pass. The gradient has the same bits either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All that the backward pass reads.
    Everything,
    /// The layer's input alone: the backward pass computes the layer again (activation checkpointing; Chen et al.,
    /// 1604.06174).
    Inputs,
}

/// What a forward pass keeps for the backward pass: per layer what is dear to recompute, or its input.
pub struct Tape<B: Backend> {
    /// `None` below the lowest adapter, where no gradient flows.
    pub(super) layers: Vec<Option<Kept<B>>>,
    /// The residual stream at the wanted rows, before the final norm: `[N, H]`.
    pub(super) last: B::Activations,
}

/// Kept of one layer, as [`Keep`] says.
pub(super) enum Kept<B: Backend> {
    Everything(LayerTape<B>),
    /// Residual stream at the attention norm, all added: `[T, H]`.
    Input(B::Activations),
}

/// All that the backward pass of one layer reads. Norm outputs and the gated product are recomputed instead: they cost
/// one pass over memory.
pub(super) struct LayerTape<B: Backend> {
    /// Residual stream at the attention norm: `[T, H]`.
    pub(super) attention_input: B::Activations,
    /// Queries and keys before their norms, where the family has them.
    pub(super) unnormed: Option<Unnormed<B>>,
    /// As attention saw them: rotated.
    pub(super) q: B::Activations,
    pub(super) k: B::Activations,
    pub(super) v: B::Activations,
    pub(super) attended: B::Activations,
    pub(super) log_sum_exp: B::Reals,
    /// Residual stream at the MLP norm: `[T, H]`.
    pub(super) mlp_input: B::Activations,
    pub(super) gate: B::Activations,
    pub(super) up: B::Activations,
    /// `drop(x) Aᵀ` of every adapted projection.
    pub(super) lora_down: [Option<B::Reals>; Projection::ALL.len()],
}

/// Inputs and statistics of the norms of query and key heads.
pub(super) struct Unnormed<B: Backend> {
    pub(super) q: B::Activations,
    pub(super) q_inv_rms: B::Reals,
    pub(super) k: B::Activations,
    pub(super) k_inv_rms: B::Reals,
}

/// The residual stream between layers: `x`, and what the last block has yet to add to it.
pub(super) struct Residual<B: Backend> {
    pub(super) x: B::Activations,
    pub(super) delta: Option<B::Activations>,
}

/// Which keys attention sees.
pub(super) enum Keys<'a, B: Backend> {
    /// Those of the same packed sequence.
    Packed,
    /// Those of the cache and of the new tokens.
    Cached(&'a mut B::KvCache),
}

impl<B: Backend> Decoder<B> {
    /// Final hidden states (after the last norm) at `rows`: `[N, H]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn hidden(&self, pass: &Pass<'_, B>, rows: &Rows<B>) -> Result<B::Activations, WorkerError> {
        let mut residual = self.embed(pass)?;
        for layer in 0..self.layers.len() {
            residual = self.layer_forward(layer, residual, pass, Keys::Packed)?.0;
        }
        Ok(self.finish(residual, rows)?.0)
    }

    /// As [`Decoder::hidden`], keeping what [`Decoder::backward`] needs.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(
        &self,
        pass: &Pass<'_, B>,
        rows: &Rows<B>,
        keep: Keep,
    ) -> Result<(B::Activations, Tape<B>), WorkerError> {
        let mut residual = self.embed(pass)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in 0..self.layers.len() {
            let (next, tape) = self.layer_forward(layer, residual, pass, Keys::Packed)?;
            residual = next;
            let adapted = pass.adapter.is_some_and(|adapter| adapter.layout.reach(layer).is_some());
            layers.push(adapted.then(|| match keep {
                Keep::Everything => Kept::Everything(tape),
                Keep::Inputs => Kept::Input(tape.attention_input),
            }));
        }
        let (hidden, last) = self.finish(residual, rows)?;
        Ok((hidden, Tape { layers, last }))
    }

    /// What the backward pass reads of a layer: as it was kept, or computed again from the layer's input.
    ///
    /// The input is held as the layer left it, so that the same operations meet the same operands; dropout masks are
    /// functions of their coordinates.
    pub(super) fn layer_tape(
        &self,
        layer: usize,
        kept: Kept<B>,
        pass: &Pass<'_, B>,
    ) -> Result<LayerTape<B>, WorkerError> {
        match kept {
            Kept::Everything(tape) => Ok(tape),
            Kept::Input(x) => Ok(self.layer_forward(layer, Residual { x, delta: None }, pass, Keys::Packed)?.1),
        }
    }

    pub(super) fn embed(&self, pass: &Pass<'_, B>) -> Result<Residual<B>, WorkerError> {
        let mut x = self.backend.activations(pass.batch.tokens, self.architecture.hidden_size)?;
        self.backend.embedding(&self.embedding, &pass.batch.ids, self.architecture.embedding_scale, &mut x)?;
        Ok(Residual { x, delta: None })
    }

    /// The final norm at the wanted rows; also gives its input there.
    pub(super) fn finish(
        &self,
        mut residual: Residual<B>,
        rows: &Rows<B>,
    ) -> Result<(B::Activations, B::Activations), WorkerError> {
        if let Some(delta) = &residual.delta {
            self.backend.add(&mut residual.x, delta)?;
        }
        let mut last = self.backend.activations(rows.count, self.architecture.hidden_size)?;
        self.backend.gather_rows(&residual.x, &rows.indices, &mut last)?;
        let (hidden, _) = self.norm(&mut last, None, &self.final_norm, rows.count)?;
        Ok((hidden, last))
    }

    /// One layer: attention block, then MLP block, each behind a norm and beside the residual stream.
    pub(super) fn layer_forward(
        &self,
        layer: usize,
        residual: Residual<B>,
        pass: &Pass<'_, B>,
        keys: Keys<'_, B>,
    ) -> Result<(Residual<B>, LayerTape<B>), WorkerError> {
        let weights = &self.layers[layer];
        let tokens = pass.batch.tokens;
        let mut lora_down = [const { None }; Projection::ALL.len()];
        let mut project = |projection, x: &B::Activations| {
            let (y, down) = self.project(layer, projection, x, pass)?;
            lora_down[projection as usize] = down;
            Ok::<_, WorkerError>(y)
        };

        let Residual { x: mut attention_input, delta } = residual;
        let (normed, _) = self.norm(&mut attention_input, delta.as_ref(), &weights.attention_norm, tokens)?;
        let q = project(Projection::Q, &normed)?;
        let k = project(Projection::K, &normed)?;
        let v = project(Projection::V, &normed)?;
        let (mut q, mut k, unnormed) = self.norm_heads(layer, q, k, tokens)?;
        self.rotate(&mut q, &mut k, pass, Direction::Forward)?;
        let (attended, log_sum_exp) = self.attend(&q, &k, &v, pass, keys)?;
        let attention_out = project(Projection::O, &attended)?;

        let mut mlp_input = self.copy(&attention_input, pass)?;
        let (normed, _) = self.norm(&mut mlp_input, Some(&attention_out), &weights.mlp_norm, tokens)?;
        let gate = project(Projection::Gate, &normed)?;
        let up = project(Projection::Up, &normed)?;
        let gated = self.gated(&gate, &up, tokens)?;
        let mlp_out = project(Projection::Down, &gated)?;

        pass.progress.tick();
        let next = Residual { x: self.copy(&mlp_input, pass)?, delta: Some(mlp_out) };
        let tape =
            LayerTape { attention_input, unnormed, q, k, v, attended, log_sum_exp, mlp_input, gate, up, lora_down };
        Ok((next, tape))
    }

    /// A projection with its low-rank path, and the path's inner product.
    fn project(
        &self,
        layer: usize,
        projection: Projection,
        x: &B::Activations,
        pass: &Pass<'_, B>,
    ) -> Result<(B::Activations, Option<B::Reals>), WorkerError> {
        let weight = self.layers[layer].projection(projection);
        let mut y = self.backend.activations(pass.batch.tokens, self.width(projection))?;
        let path = pass.adapter.and_then(|adapter| adapter.path(layer, projection, &pass.batch.packing));
        let Some(path) = path else {
            self.backend.linear(x, weight, None, &mut y)?;
            return Ok((y, None));
        };
        let mut down = self.backend.reals(pass.batch.tokens * path.rank)?;
        self.backend.linear(x, weight, Some((&path, &mut down)), &mut y)?;
        Ok((y, Some(down)))
    }

    /// `x += delta`, then the norm of `x`, and the statistics its gradient needs.
    pub(super) fn norm(
        &self,
        x: &mut B::Activations,
        delta: Option<&B::Activations>,
        weight: &B::Reals,
        rows: usize,
    ) -> Result<(B::Activations, B::Reals), WorkerError> {
        let mut out = self.backend.activations(rows, self.architecture.hidden_size)?;
        let mut inv_rms = self.backend.reals(rows)?;
        let (epsilon, kind) = (self.architecture.norm_epsilon, self.norm_kind);
        self.backend.add_rms_norm(x, delta, weight, epsilon, kind, &mut out, &mut inv_rms)?;
        Ok((out, inv_rms))
    }

    /// Norms of query and key heads, where the family has them.
    #[allow(clippy::type_complexity)]
    fn norm_heads(
        &self,
        layer: usize,
        mut q: B::Activations,
        mut k: B::Activations,
        tokens: usize,
    ) -> Result<(B::Activations, B::Activations, Option<Unnormed<B>>), WorkerError> {
        let Some(weights) = &self.layers[layer].head_norms else {
            return Ok((q, k, None));
        };
        let norm = |x: &mut B::Activations, weight: &B::Reals, projection: Projection| {
            let mut out = self.backend.activations(tokens, self.width(projection))?;
            let mut inv_rms = self.backend.reals(tokens * self.width(projection) / self.architecture.head_dim)?;
            let (epsilon, kind): (f32, NormKind) = (self.architecture.norm_epsilon, self.norm_kind);
            self.backend.add_rms_norm(x, None, weight, epsilon, kind, &mut out, &mut inv_rms)?;
            Ok::<_, WorkerError>((out, inv_rms))
        };
        let (normed_q, q_inv_rms) = norm(&mut q, &weights.q, Projection::Q)?;
        let (normed_k, k_inv_rms) = norm(&mut k, &weights.k, Projection::K)?;
        Ok((normed_q, normed_k, Some(Unnormed { q, q_inv_rms, k, k_inv_rms })))
    }

    pub(super) fn rotate(
        &self,
        q: &mut B::Activations,
        k: &mut B::Activations,
        pass: &Pass<'_, B>,
        direction: Direction,
    ) -> Result<(), WorkerError> {
        let packing = &pass.batch.packing;
        self.backend.rotary(q, self.attention.heads, &self.rotary, packing, direction)?;
        self.backend.rotary(k, self.attention.kv_heads, &self.rotary, packing, direction)?;
        Ok(())
    }

    fn attend(
        &self,
        q: &B::Activations,
        k: &B::Activations,
        v: &B::Activations,
        pass: &Pass<'_, B>,
        keys: Keys<'_, B>,
    ) -> Result<(B::Activations, B::Reals), WorkerError> {
        let tokens = pass.batch.tokens;
        let mut out = self.backend.activations(tokens, self.width(Projection::Q))?;
        let mut log_sum_exp = self.backend.reals(tokens * self.attention.heads)?;
        let shape = &self.attention;
        match keys {
            Keys::Packed => {
                self.backend.attention(q, k, v, &pass.batch.packing, shape, &mut out, &mut log_sum_exp)?;
            }
            Keys::Cached(cache) => self.backend.attention_cached(q, k, v, cache, shape, &mut out)?,
        }
        Ok((out, log_sum_exp))
    }

    pub(super) fn gated(
        &self,
        gate: &B::Activations,
        up: &B::Activations,
        tokens: usize,
    ) -> Result<B::Activations, WorkerError> {
        let mut out = self.backend.activations(tokens, self.architecture.intermediate_size)?;
        self.backend.gated(gate, up, self.activation, &mut out)?;
        Ok(out)
    }

    /// The residual stream is added to in place, and the backward pass needs it as it was.
    fn copy(&self, x: &B::Activations, pass: &Pass<'_, B>) -> Result<B::Activations, WorkerError> {
        let mut copy = self.backend.activations(pass.batch.tokens, self.architecture.hidden_size)?;
        self.backend.gather_rows(x, &pass.batch.every_row, &mut copy)?;
        Ok(copy)
    }
}
