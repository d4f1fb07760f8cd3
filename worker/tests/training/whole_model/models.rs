//! A model of every family, small and random, and its adapter.

use crate::support::{ALL_LINEAR, drawn};
use ballast_basemodel::{Activation, Architecture};
use ballast_kernels::Backend;
use ballast_kernels::reference::Rounding;
use ballast_proto::v1::Lora;
use ballast_worker::lora::LoraLayout;
use ballast_worker::model::Decoder;
use std::sync::Arc;

/// A family of models, by a small one.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) architecture: Architecture,
    /// Of the adapter.
    pub(crate) rank: u32,
}

/// What all have in common. Head sizes are those that the CUDA backend has programs for (64, 96, 128, 256), and such as the
/// fixtures of tests have.
fn small() -> Architecture {
    Architecture {
        hidden_size: 96,
        intermediate_size: 136,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        vocab_size: 151,
        max_positions: 128,
        ..Architecture::tiny()
    }
}

pub(crate) fn llama() -> Family {
    Family { name: "llama", architecture: small(), rank: 8 }
}

pub(crate) fn llama_biases() -> Family {
    let architecture = Architecture {
        head_dim: 8,
        hidden_size: 40,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        tied_embeddings: true,
        ..small()
    };
    Family { name: "llama, biases, tied", architecture, rank: 5 }
}

pub(crate) fn mistral_window() -> Family {
    let architecture = Architecture {
        family: "mistral".into(),
        head_dim: 128,
        heads: 2,
        kv_heads: 1,
        sliding_window: Some(23),
        ..small()
    };
    Family { name: "mistral, window", architecture, rank: 4 }
}

pub(crate) fn qwen2() -> Family {
    let architecture = Architecture {
        family: "qwen2".into(),
        head_dim: 12,
        hidden_size: 56,
        qkv_bias: true,
        tied_embeddings: true,
        ..small()
    };
    Family { name: "qwen2", architecture, rank: 3 }
}

/// A rank beyond what the narrow kernels of the low-rank path take.
pub(crate) fn qwen3() -> Family {
    let architecture =
        Architecture { family: "qwen3".into(), head_dim: 96, heads: 2, kv_heads: 1, qk_norm: true, ..small() };
    Family { name: "qwen3", architecture, rank: 17 }
}

pub(crate) fn gemma() -> Family {
    let architecture = Architecture {
        family: "gemma".into(),
        head_dim: 256,
        heads: 2,
        kv_heads: 1,
        hidden_size: 64,
        norm_unit_offset: true,
        activation: Activation::GeluTanh,
        embedding_scale: 8.0,
        tied_embeddings: true,
        ..small()
    };
    Family { name: "gemma", architecture, rank: 4 }
}

impl Family {
    /// The architecture at another depth.
    pub(crate) fn layers(&self, layers: usize) -> Architecture {
        Architecture { layers, ..self.architecture.clone() }
    }

    /// An adapter on all projections.
    pub(crate) fn lora(&self, dropout: f64) -> Lora {
        let target_modules = ALL_LINEAR.map(String::from).to_vec();
        Lora { rank: self.rank, alpha: 2.0 * f64::from(self.rank), scaling: 2.0, dropout, target_modules }
    }
}

/// A decoder with random weights: each layer keeps the scale of what goes through it, norms are near one.
///
/// Frozen weights are such as bf16 holds, which is how base models are stored: what bf16 costs is arithmetic alone.
pub(crate) fn decoder<B: Backend>(backend: &Arc<B>, architecture: &Architecture) -> Decoder<B> {
    drawn_decoder(0, backend, architecture)
}

/// The same, of another draw of the weights.
pub(crate) fn drawn_decoder<B: Backend>(draw: u32, backend: &Arc<B>, architecture: &Architecture) -> Decoder<B> {
    let weights = |name: &str, shape: &[usize]| {
        let len = shape.iter().product();
        let (center, bound) = match (name, shape) {
            (name, _) if name.contains("norm") => (if architecture.norm_unit_offset { 0.0 } else { 1.0 }, 0.3),
            (name, _) if name.contains("embed") => (0.0, 1.0 / architecture.embedding_scale),
            (_, [_, inp]) => (0.0, (3.0 / *inp as f32).sqrt()),
            _ => (0.0, 0.3),
        };
        let stored = |value: f32| Rounding::Bf16.round(f64::from(center + value)) as f32;
        Ok(drawn(draw, name, len, bound).into_iter().map(stored).collect())
    };
    Decoder::from_weights(backend, architecture, &weights).unwrap()
}

/// Parameters of an adapter in the midst of training: neither A nor B is zero, so that no gradient is.
pub(crate) fn parameters(layout: &LoraLayout) -> Vec<f32> {
    drawn_parameters(0, layout)
}

/// The same, of another draw.
pub(crate) fn drawn_parameters(draw: u32, layout: &LoraLayout) -> Vec<f32> {
    let tensor = |tensor: &ballast_worker::lora::LoraTensor| {
        drawn(draw, &tensor.name, tensor.range.len(), 0.5 / (tensor.shape[1] as f32).sqrt())
    };
    layout.tensors().iter().flat_map(tensor).collect()
}
