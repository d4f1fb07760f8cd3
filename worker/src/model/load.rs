//! Base weights onto a device.

use super::{Decoder, HeadNorms, Layer, rotary};
use crate::WorkerError;
use ballast_basemodel::{Activation, Architecture, BaseModel, Projection};
use ballast_kernels::{AttentionShape, Backend, GatedActivation, NormKind};
use std::sync::Arc;

/// Gives the tensor of this name and shape, row-major.
pub type Weights<'a> = dyn Fn(&str, &[usize]) -> Result<Vec<f32>, WorkerError> + 'a;

impl<B: Backend> Decoder<B> {
    /// Loads a base model; host copies live no longer than it takes to pack them.
    ///
    /// # Errors
    /// When a tensor is missing or malformed, or the device is out of memory.
    pub fn load(backend: &Arc<B>, model: &BaseModel) -> Result<Self, WorkerError> {
        Self::from_weights(backend, model.architecture(), &|name, shape| Ok(model.tensor_f32(name, shape)?))
    }

    /// A decoder of this architecture with weights from anywhere, asked for by their Hugging Face names.
    ///
    /// # Errors
    /// As `weights` gives them, and when the device is out of memory.
    pub fn from_weights(
        backend: &Arc<B>,
        architecture: &Architecture,
        weights: &Weights<'_>,
    ) -> Result<Self, WorkerError> {
        let a = architecture;
        let table = weights("model.embed_tokens.weight", &[a.vocab_size, a.hidden_size])?;
        let embedding = backend.pack_embedding(&table, a.vocab_size, a.hidden_size)?;
        drop(table);
        let head = if a.tied_embeddings {
            backend.tied_head(&embedding)?
        } else {
            let weight = weights("lm_head.weight", &[a.vocab_size, a.hidden_size])?;
            backend.pack_linear(&weight, a.vocab_size, a.hidden_size, None)?
        };
        let layers = (0..a.layers).map(|layer| load_layer(&**backend, a, layer, weights)).collect::<Result<_, _>>()?;
        let final_norm = backend.upload_reals(&weights("model.norm.weight", &[a.hidden_size])?)?;
        let (cos, sin) = rotary::tables(a);
        Ok(Self {
            attention: AttentionShape {
                heads: a.heads,
                kv_heads: a.kv_heads,
                head_dim: a.head_dim,
                scale: (1.0 / (a.head_dim as f64).sqrt()) as f32,
                window: a.sliding_window,
            },
            norm_kind: if a.norm_unit_offset { NormKind::UnitOffset } else { NormKind::Plain },
            activation: match a.activation {
                Activation::Silu => GatedActivation::Silu,
                Activation::GeluTanh => GatedActivation::GeluTanh,
            },
            embedding,
            layers,
            final_norm,
            head,
            rotary: backend.upload_rotary(&cos, &sin, a.head_dim / 2)?,
            architecture: a.clone(),
            backend: Arc::clone(backend),
        })
    }
}

fn load_layer<B: Backend>(
    backend: &B,
    a: &Architecture,
    layer: usize,
    weights: &Weights<'_>,
) -> Result<Layer<B>, WorkerError> {
    let vector = |name: &str, len: usize| -> Result<B::Reals, WorkerError> {
        Ok(backend.upload_reals(&weights(&format!("model.layers.{layer}.{name}.weight"), &[len])?)?)
    };
    let linear = |projection: Projection| -> Result<B::Linear, WorkerError> {
        let (out, inp) = a.projection_shape(projection);
        let name = format!("model.layers.{layer}.{}.{}", projection.block(), projection.name());
        let bias = has_bias(a, projection).then(|| weights(&format!("{name}.bias"), &[out])).transpose()?;
        Ok(backend.pack_linear(&weights(&format!("{name}.weight"), &[out, inp])?, out, inp, bias.as_deref())?)
    };
    let head_norms = if a.qk_norm {
        Some(HeadNorms { q: vector("self_attn.q_norm", a.head_dim)?, k: vector("self_attn.k_norm", a.head_dim)? })
    } else {
        None
    };
    let [q, k, v, o, gate, up, down] = Projection::ALL.map(linear);
    Ok(Layer {
        attention_norm: vector("input_layernorm", a.hidden_size)?,
        head_norms,
        mlp_norm: vector("post_attention_layernorm", a.hidden_size)?,
        projections: [q?, k?, v?, o?, gate?, up?, down?],
    })
}

fn has_bias(architecture: &Architecture, projection: Projection) -> bool {
    match projection {
        Projection::Q | Projection::K | Projection::V => architecture.qkv_bias,
        Projection::O => architecture.output_bias,
        Projection::Gate | Projection::Up | Projection::Down => architecture.mlp_bias,
    }
}
