//! One decoder for every LLaMA-like family, described by [`Architecture`], written over the [`Backend`] contract.
//!
//! The backward pass is written by hand and forms only what LoRA needs: no gradient of a frozen weight, and none below
//! the lowest adapter.

mod backward;
mod batch;
mod decode;
mod forward;
mod load;
mod rotary;

pub use backward::OnLayer;
pub use batch::{Batch, Rows};
pub use decode::DecodeCache;
pub use forward::{Keep, Tape};
pub use load::Weights;

use crate::lora::Adapter;
use crate::progress::Progress;
use ballast_basemodel::{Architecture, Projection};
use ballast_kernels::{AttentionShape, Backend, GatedActivation, NormKind};
use std::sync::Arc;

/// The base model on a device.
pub struct Decoder<B: Backend> {
    backend: Arc<B>,
    architecture: Architecture,
    attention: AttentionShape,
    norm_kind: NormKind,
    activation: GatedActivation,
    embedding: B::Embedding,
    layers: Vec<Layer<B>>,
    final_norm: B::Reals,
    head: B::Linear,
    rotary: B::Rotary,
}

/// The frozen weights of one layer.
struct Layer<B: Backend> {
    attention_norm: B::Reals,
    /// Norms of query and key heads, where the family has them.
    head_norms: Option<HeadNorms<B>>,
    mlp_norm: B::Reals,
    /// By [`Projection`].
    projections: [B::Linear; Projection::ALL.len()],
}

struct HeadNorms<B: Backend> {
    q: B::Reals,
    k: B::Reals,
}

impl<B: Backend> Layer<B> {
    fn projection(&self, projection: Projection) -> &B::Linear {
        &self.projections[projection as usize]
    }
}

/// What a forward or backward pass runs over.
pub struct Pass<'a, B: Backend> {
    /// The tokens.
    pub batch: &'a Batch<B>,
    /// The adapter; without one, the pass is the base model's.
    pub adapter: Option<&'a Adapter<'a, B>>,
    /// Ticked with every layer.
    pub progress: &'a Progress,
}

impl<B: Backend> Decoder<B> {
    /// What the decoder looks like.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The device it lives on.
    #[must_use]
    pub fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    /// The output head.
    #[must_use]
    pub fn head(&self) -> &B::Linear {
        &self.head
    }

    fn width(&self, projection: Projection) -> usize {
        self.architecture.projection_shape(projection).0
    }
}
