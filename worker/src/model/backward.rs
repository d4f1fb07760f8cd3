//! The backward pass: gradients of the adapter, and no others.

use super::forward::{LayerTape, Unnormed};
use super::{Decoder, Pass, Rows, Tape};
use crate::WorkerError;
use crate::lora::Reach;
use ballast_basemodel::Projection;
use ballast_kernels::{Backend, Direction, Target};

/// What hears of a layer whose gradient is complete: its number, and the gradient of all.
pub type OnLayer<'a, B> = dyn FnMut(usize, &<B as Backend>::Reals) -> Result<(), WorkerError> + 'a;

impl<B: Backend> Decoder<B> {
    /// Gradient of the adapter, given the gradient of the hidden states at `rows`.
    ///
    /// Overwrites all of `gradient`, which is laid out as the adapter. Nothing is computed below the lowest adapter. As soon as
    /// the gradient of a layer's tensors is complete, from the top layer down, `on_layer` is called with its number and
    /// `gradient`.
    ///
    /// # Errors
    /// When the device fails, and what `on_layer` returns.
    pub fn backward(
        &self,
        d_hidden: &B::Activations,
        pass: &Pass<'_, B>,
        rows: &Rows<B>,
        tape: Tape<B>,
        gradient: &mut B::Reals,
        on_layer: &mut OnLayer<'_, B>,
    ) -> Result<(), WorkerError> {
        let Some(adapter) = pass.adapter else { return Ok(()) };
        let Tape { layers, mut last } = tape;
        let (_, inv_rms) = self.norm(&mut last, None, &self.final_norm, rows.count)?;
        let mut d_last = self.backend.activations(rows.count, self.architecture.hidden_size)?;
        let target = Target::Overwrite(&mut d_last);
        self.backend.rms_norm_backward(d_hidden, &last, &self.final_norm, self.norm_kind, &inv_rms, target)?;
        let mut d_x = self.backend.activations(pass.batch.tokens, self.architecture.hidden_size)?;
        self.backend.scatter_rows(&d_last, &rows.indices, &mut d_x)?;

        for (layer, kept) in layers.into_iter().enumerate().rev() {
            let (Some(kept), Some(reach)) = (kept, adapter.layout.reach(layer)) else { break };
            let tape = self.layer_tape(layer, kept, pass)?;
            LayerBackward { decoder: self, layer, pass, reach, gradient: &mut *gradient }.run(tape, &mut d_x)?;
            on_layer(layer, gradient)?;
            pass.progress.tick();
        }
        Ok(())
    }
}

/// The backward pass of one layer.
struct LayerBackward<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    layer: usize,
    pass: &'a Pass<'a, B>,
    reach: Reach,
    gradient: &'a mut B::Reals,
}

impl<B: Backend> LayerBackward<'_, B> {
    /// Turns the gradient of the layer's output into that of its input, in place, as far down as it must flow.
    fn run(mut self, mut tape: LayerTape<B>, d_x: &mut B::Activations) -> Result<(), WorkerError> {
        self.mlp(&mut tape, d_x)?;
        if self.reach <= Reach::Output {
            self.attention(&mut tape, d_x)?;
        }
        Ok(())
    }

    /// `y = x + down(act(gate(norm x)) * up(norm x))`.
    fn mlp(&mut self, tape: &mut LayerTape<B>, d_x: &mut B::Activations) -> Result<(), WorkerError> {
        let (decoder, tokens) = (self.decoder, self.pass.batch.tokens);
        let gated = decoder.gated(&tape.gate, &tape.up, tokens)?;
        let down = &tape.lora_down;
        if self.reach == Reach::Down {
            return self.project(Projection::Down, d_x, &gated, down, None);
        }
        let mut d_gated = self.like(Projection::Up)?;
        self.project(Projection::Down, d_x, &gated, down, Some(Target::Overwrite(&mut d_gated)))?;
        drop(gated);
        let (mut d_gate, mut d_up) = (self.like(Projection::Gate)?, self.like(Projection::Up)?);
        let activation = decoder.activation;
        decoder.backend.gated_backward(&d_gated, &tape.gate, &tape.up, activation, &mut d_gate, &mut d_up)?;

        let weight = &decoder.layers[self.layer].mlp_norm;
        let (normed, inv_rms) = decoder.norm(&mut tape.mlp_input, None, weight, tokens)?;
        if self.reach == Reach::GateUp {
            self.project(Projection::Gate, &d_gate, &normed, down, None)?;
            return self.project(Projection::Up, &d_up, &normed, down, None);
        }
        let mut d_normed = self.like(Projection::Down)?;
        self.project(Projection::Gate, &d_gate, &normed, down, Some(Target::Overwrite(&mut d_normed)))?;
        self.project(Projection::Up, &d_up, &normed, down, Some(Target::Add(&mut d_normed)))?;
        self.norm(&d_normed, &tape.mlp_input, weight, &inv_rms, d_x)
    }

    /// `y = x + o(attention(q, k, v))`, with q, k and v of `norm x`.
    fn attention(&mut self, tape: &mut LayerTape<B>, d_x: &mut B::Activations) -> Result<(), WorkerError> {
        let (decoder, tokens) = (self.decoder, self.pass.batch.tokens);
        let down = &tape.lora_down;
        if self.reach == Reach::Output {
            return self.project(Projection::O, d_x, &tape.attended, down, None);
        }
        let mut d_attended = self.like(Projection::Q)?;
        self.project(Projection::O, d_x, &tape.attended, down, Some(Target::Overwrite(&mut d_attended)))?;
        let (mut d_q, mut d_k, mut d_v) =
            (self.like(Projection::Q)?, self.like(Projection::K)?, self.like(Projection::V)?);
        decoder.backend.attention_backward(
            &d_attended,
            &tape.q,
            &tape.k,
            &tape.v,
            &tape.attended,
            &tape.log_sum_exp,
            &self.pass.batch.packing,
            &decoder.attention,
            &mut d_q,
            &mut d_k,
            &mut d_v,
        )?;
        decoder.rotate(&mut d_q, &mut d_k, self.pass, Direction::Backward)?;
        let (d_q, d_k) = match &tape.unnormed {
            Some(unnormed) => self.head_norms(&d_q, &d_k, unnormed)?,
            None => (d_q, d_k),
        };

        let weight = &decoder.layers[self.layer].attention_norm;
        let (normed, inv_rms) = decoder.norm(&mut tape.attention_input, None, weight, tokens)?;
        if self.reach == Reach::QueryKeyValue {
            self.project(Projection::Q, &d_q, &normed, down, None)?;
            self.project(Projection::K, &d_k, &normed, down, None)?;
            return self.project(Projection::V, &d_v, &normed, down, None);
        }
        let mut d_normed = self.like(Projection::O)?;
        self.project(Projection::Q, &d_q, &normed, down, Some(Target::Overwrite(&mut d_normed)))?;
        self.project(Projection::K, &d_k, &normed, down, Some(Target::Add(&mut d_normed)))?;
        self.project(Projection::V, &d_v, &normed, down, Some(Target::Add(&mut d_normed)))?;
        self.norm(&d_normed, &tape.attention_input, weight, &inv_rms, d_x)
    }

    /// Gradients of one projection: of its adapter, and of its input where wanted.
    fn project(
        &mut self,
        projection: Projection,
        d_y: &B::Activations,
        x: &B::Activations,
        lora_down: &[Option<B::Reals>; Projection::ALL.len()],
        d_x: Option<Target<'_, B::Activations>>,
    ) -> Result<(), WorkerError> {
        let packing = &self.pass.batch.packing;
        let path = self.pass.adapter.and_then(|adapter| adapter.path(self.layer, projection, packing));
        let lora = match (&path, &lora_down[projection as usize]) {
            (Some(path), Some(down)) => Some((path, down, &mut *self.gradient)),
            _ => None,
        };
        if lora.is_none() && d_x.is_none() {
            return Ok(());
        }
        let weight = self.decoder.layers[self.layer].projection(projection);
        Ok(self.decoder.backend.linear_backward(d_y, x, weight, lora, d_x)?)
    }

    /// Adds the gradient of a norm's input to the residual stream's.
    fn norm(
        &self,
        d_normed: &B::Activations,
        x: &B::Activations,
        weight: &B::Reals,
        inv_rms: &B::Reals,
        d_x: &mut B::Activations,
    ) -> Result<(), WorkerError> {
        let kind = self.decoder.norm_kind;
        Ok(self.decoder.backend.rms_norm_backward(d_normed, x, weight, kind, inv_rms, Target::Add(d_x))?)
    }

    /// Gradients of queries and keys before their norms.
    fn head_norms(
        &self,
        d_q: &B::Activations,
        d_k: &B::Activations,
        unnormed: &Unnormed<B>,
    ) -> Result<(B::Activations, B::Activations), WorkerError> {
        let (mut out_q, mut out_k) = (self.like(Projection::Q)?, self.like(Projection::K)?);
        if let Some(weights) = &self.decoder.layers[self.layer].head_norms {
            let (backend, kind) = (&self.decoder.backend, self.decoder.norm_kind);
            let Unnormed { q, q_inv_rms, k, k_inv_rms } = unnormed;
            backend.rms_norm_backward(d_q, q, &weights.q, kind, q_inv_rms, Target::Overwrite(&mut out_q))?;
            backend.rms_norm_backward(d_k, k, &weights.k, kind, k_inv_rms, Target::Overwrite(&mut out_k))?;
        }
        Ok((out_q, out_k))
    }

    /// A matrix as large as a projection's output.
    fn like(&self, projection: Projection) -> Result<B::Activations, WorkerError> {
        Ok(self.decoder.backend.activations(self.pass.batch.tokens, self.decoder.width(projection))?)
    }
}
