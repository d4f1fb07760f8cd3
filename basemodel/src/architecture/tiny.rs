//! An architecture for tests.

use super::{Activation, Architecture, RotaryScaling};

impl Architecture {
    /// A LLaMA of two layers with grouped-query attention, small enough for finite differences: what tests begin from,
    /// changing the fields that they are about.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            family: "llama".into(),
            hidden_size: 24,
            intermediate_size: 40,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            vocab_size: 61,
            max_positions: 64,
            norm_epsilon: 1e-5,
            norm_unit_offset: false,
            qk_norm: false,
            rope_theta: 1e4,
            rope_scaling: RotaryScaling::Default,
            sliding_window: None,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            tied_embeddings: false,
        }
    }
}
