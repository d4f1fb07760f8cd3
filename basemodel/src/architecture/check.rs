//! Whether a description is one that can be computed, and which tensors it asks for.

use super::{Architecture, Projection, RotaryScaling};
use crate::Error;
use std::path::Path;

/// Largest value of each size. They are far above any model and keep every product of two of them in range.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 4096;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 4096;
const MAX_VOCABULARY: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 31;

impl Architecture {
    /// Refuses sizes that are zero, absurd or at odds with each other; `file` is named in errors.
    pub(crate) fn validate(&self, file: &Path) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::malformed(file, what));
        for (name, value, most) in [
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("number of layers", self.layers, MAX_LAYERS),
            ("number of attention heads", self.heads, MAX_HEADS),
            ("number of key/value heads", self.kv_heads, MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("vocab_size", self.vocab_size, MAX_VOCABULARY),
            ("context length", self.max_positions, MAX_POSITIONS),
            ("sliding_window", self.sliding_window.unwrap_or(1), MAX_POSITIONS),
        ] {
            if !(1..=most).contains(&value) {
                return wrong(format!("{name} is {value}; 1 to {most} is allowed"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            return wrong(format!("{heads} attention heads are not a multiple of {kv_heads} key/value heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong(format!("head_dim is {}; rotary embeddings need an even number", self.head_dim));
        }
        if !(self.norm_epsilon > 0.0 && self.norm_epsilon < 1.0) {
            return wrong(format!(
                "the epsilon of RMSNorm is {}; a number between 0 and 1 is wanted",
                self.norm_epsilon
            ));
        }
        if !(self.rope_theta > 1.0 && self.rope_theta.is_finite()) {
            return wrong(format!("rope_theta is {}; a finite number above 1 is wanted", self.rope_theta));
        }
        self.rope_scaling.validate().map_or(Ok(()), wrong)
    }

    /// Name and shape of every tensor that the decoder needs.
    pub(crate) fn required_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, vocabulary) = (self.hidden_size, self.vocab_size);
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !self.tied_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
        }
        for layer in 0..self.layers {
            let mut push = |part: &str, shape| tensors.push((format!("model.layers.{layer}.{part}"), shape));
            push("input_layernorm.weight", vec![hidden]);
            push("post_attention_layernorm.weight", vec![hidden]);
            if self.qk_norm {
                push("self_attn.q_norm.weight", vec![self.head_dim]);
                push("self_attn.k_norm.weight", vec![self.head_dim]);
            }
            for projection in Projection::ALL {
                let (out, inp) = self.projection_shape(projection);
                let module = format!("{}.{}", projection.block(), projection.name());
                push(&format!("{module}.weight"), vec![out, inp]);
                if self.has_bias(projection) {
                    push(&format!("{module}.bias"), vec![out]);
                }
            }
        }
        tensors
    }

    /// Whether this projection has a bias.
    #[must_use]
    pub fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::Q | Projection::K | Projection::V => self.qkv_bias,
            Projection::O => self.output_bias,
            Projection::Gate | Projection::Up | Projection::Down => self.mlp_bias,
        }
    }
}

impl RotaryScaling {
    /// What is wrong with it, if anything.
    fn validate(&self) -> Option<String> {
        let at_least_one = |x: f64| x >= 1.0 && x.is_finite();
        match *self {
            Self::Default => None,
            Self::Linear { factor } | Self::Llama3 { factor, .. } if !at_least_one(factor) => {
                Some(format!("the factor of rotary scaling is {factor}; a finite number from 1 is wanted"))
            }
            Self::Linear { .. } => None,
            Self::Llama3 { low_freq_factor: low, high_freq_factor: high, .. }
                if !(low > 0.0 && high > low && high.is_finite()) =>
            {
                Some(format!("low_freq_factor {low} must be above 0 and below high_freq_factor {high}"))
            }
            Self::Llama3 { original_max_positions: original, .. } if !(1..=MAX_POSITIONS).contains(&original) => {
                Some(format!("original_max_position_embeddings is {original}; 1 to {MAX_POSITIONS} is allowed"))
            }
            Self::Llama3 { .. } => None,
        }
    }
}
