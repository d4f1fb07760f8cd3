//! The operations every backend provides.

use crate::{KernelError, PackedLayout};
use std::ops::Range;

/// Result of a backend operation.
pub(crate) type Result<T> = std::result::Result<T, KernelError>;

/// A device and the operations that LoRA training of a decoder needs.
///
/// # Buffers
/// Buffers belong to the backend that made them and return to its memory when dropped. Matrices are row-major.
/// `T` is the number of tokens of a micro-batch, `H` the hidden size, `N` a number of loss positions.
/// An output (`&mut`) is overwritten unless the operation says that it adds. Operands never alias.
///
/// # Order
/// Calls take effect in the order made, as on one stream; `read_*` and [`Backend::synchronize`] wait for them.
///
/// # Errors
/// Every operation returns [`KernelError::Shape`] when operands do not fit together, naming the operation and both
/// shapes, and [`KernelError::OutOfMemory`] or [`KernelError::Device`] when the device says so.
pub trait Backend: Send + Sync + Sized + 'static {
    /// A matrix of activations or of their gradients, `[rows, cols]`, in the backend's storage type (f32 or bf16).
    type Activations: Send + Sync;
    /// A vector of f32: parameters, gradients of parameters, optimizer moments, saved statistics.
    type Reals: Send + Sync;
    /// A vector of i64: fixed-point sums and flags.
    type Integers: Send + Sync;
    /// A vector of bf16: sums on their way between ranks.
    type Halves: Send + Sync;
    /// A vector of u32: token ids, targets, row numbers.
    type Indices: Send + Sync;
    /// A frozen linear layer `y = x Wᵀ + bias`, `W: [out, in]`, packed as the device likes it.
    type Linear: Send + Sync;
    /// A frozen embedding table `[vocab, H]`.
    type Embedding: Send + Sync;
    /// cos and sin of every rotary angle, `[positions, head_dim / 2]`.
    type Rotary: Send + Sync;
    /// A [`PackedLayout`] on the device.
    type Packing: Send + Sync;
    /// Keys and values of one layer and one sequence, for decoding.
    type KvCache: Send;

    /// "cpu" or "cuda".
    fn name(&self) -> &'static str;

    /// All of this backend that may change a bit: instruction-set path, libraries, blocking. Part of the numerics
    /// fingerprint: two backends with equal descriptions give equal bits. Asked for once all weights are packed.
    ///
    /// # Errors
    /// [`KernelError::Device`] when the device or a library of it fails to answer.
    fn arithmetic(&self) -> Result<String>;

    /// Whether a [`PackedLayout`] may share a prefix among its sequences: attention then sees it before each of them, and
    /// sums its gradient over all in their order. [`Backend::upload_packing`] of others refuses such a layout.
    fn shares_prefixes(&self) -> bool {
        false
    }

    /// Waits until all earlier calls have taken effect.
    fn synchronize(&self) -> Result<()>;

    // ---- buffers -------------------------------------------------------------------------------------------------

    /// A matrix of unspecified content.
    fn activations(&self, rows: usize, cols: usize) -> Result<Self::Activations>;
    /// A matrix from row-major host values (rounded to the storage type).
    fn upload_activations(&self, values: &[f32], rows: usize, cols: usize) -> Result<Self::Activations>;
    /// The whole matrix, row-major, widened to f32.
    fn read_activations(&self, matrix: &Self::Activations) -> Result<Vec<f32>>;

    /// A vector of zeros.
    fn reals(&self, len: usize) -> Result<Self::Reals>;
    /// A vector from host values.
    fn upload_reals(&self, values: &[f32]) -> Result<Self::Reals>;
    /// Sets every element to zero.
    fn clear_reals(&self, vector: &mut Self::Reals) -> Result<()>;
    /// Overwrites the whole vector from the host; `values` has its length.
    fn write_reals(&self, vector: &mut Self::Reals, values: &[f32]) -> Result<()>;
    /// The whole vector.
    fn read_reals(&self, vector: &Self::Reals) -> Result<Vec<f32>>;

    /// A vector of zeros.
    fn integers(&self, len: usize) -> Result<Self::Integers>;
    /// Sets every element to zero.
    fn clear_integers(&self, vector: &mut Self::Integers) -> Result<()>;
    /// Overwrites the whole vector from the host.
    fn write_integers(&self, vector: &mut Self::Integers, values: &[i64]) -> Result<()>;
    /// Elements of a vector.
    fn integers_len(&self, vector: &Self::Integers) -> usize;
    /// Copies the whole vector into `values`, which has its length.
    fn read_integers(&self, vector: &Self::Integers, values: &mut [i64]) -> Result<()>;

    /// A vector of zeros.
    fn halves(&self, len: usize) -> Result<Self::Halves>;
    /// Overwrites the whole vector from the host, rounding to the nearest, ties to even; `values` has its length.
    fn write_halves(&self, vector: &mut Self::Halves, values: &[f32]) -> Result<()>;
    /// The whole vector.
    fn read_halves(&self, vector: &Self::Halves) -> Result<Vec<f32>>;

    /// A vector from host values.
    fn upload_indices(&self, values: &[u32]) -> Result<Self::Indices>;
    /// Puts sequence bounds, positions and sample numbers on the device.
    fn upload_packing(&self, layout: &PackedLayout) -> Result<Self::Packing>;

    // ---- frozen weights ------------------------------------------------------------------------------------------

    /// Packs a frozen weight `[out, inp]` (row-major) with an optional bias `[out]`.
    fn pack_linear(&self, weight: &[f32], out: usize, inp: usize, bias: Option<&[f32]>) -> Result<Self::Linear>;
    /// Stores an embedding table `[vocab, hidden]`.
    fn pack_embedding(&self, table: &[f32], vocab: usize, hidden: usize) -> Result<Self::Embedding>;
    /// The output head of a model with tied embeddings, sharing the table's memory where the device can.
    fn tied_head(&self, table: &Self::Embedding) -> Result<Self::Linear>;
    /// Rotary tables `[positions, half]`, `half = head_dim / 2`.
    fn upload_rotary(&self, cos: &[f32], sin: &[f32], half: usize) -> Result<Self::Rotary>;

    // ---- forward and backward ------------------------------------------------------------------------------------

    /// `out[t] = scale * table[ids[t]]`. `out: [T, H]`. No gradient: embeddings are frozen.
    fn embedding(
        &self,
        table: &Self::Embedding,
        ids: &Self::Indices,
        scale: f32,
        out: &mut Self::Activations,
    ) -> Result<()>;

    /// Residual add fused with RMSNorm (Zhang and Sennrich, 1910.07467):
    /// `x += delta` (when given), then `out = x * inv_rms * w`, `inv_rms = 1 / sqrt(mean(x²) + eps)`.
    ///
    /// The norm runs over groups of `weight.len()` consecutive elements; a row holds one group (layer norms) or
    /// several (norms per head). `w` is `weight`, or `1 + weight` for [`NormKind::UnitOffset`].
    /// `inv_rms: [rows * cols / weight.len()]` is saved for the backward pass.
    #[allow(clippy::too_many_arguments)]
    fn add_rms_norm(
        &self,
        x: &mut Self::Activations,
        delta: Option<&Self::Activations>,
        weight: &Self::Reals,
        eps: f32,
        kind: NormKind,
        out: &mut Self::Activations,
        inv_rms: &mut Self::Reals,
    ) -> Result<()>;

    /// Gradient of [`Backend::add_rms_norm`] with respect to the sum `x` (and so to `delta`), given `x` *after* the add.
    fn rms_norm_backward(
        &self,
        d_out: &Self::Activations,
        x: &Self::Activations,
        weight: &Self::Reals,
        kind: NormKind,
        inv_rms: &Self::Reals,
        d_x: Target<'_, Self::Activations>,
    ) -> Result<()>;

    /// A frozen linear layer with its low-rank path (Hu et al., 2106.09685), as one operation:
    /// `y = x Wᵀ + bias + scaling * (drop(x) Aᵀ) Bᵀ`; `x: [T, in]`, `y: [T, out]`.
    ///
    /// With a `lora` path, `down: [T * rank]` receives `drop(x) Aᵀ` for the backward pass.
    fn linear(
        &self,
        x: &Self::Activations,
        weight: &Self::Linear,
        lora: Option<(&LoraPath<'_, Self>, &mut Self::Reals)>,
        y: &mut Self::Activations,
    ) -> Result<()>;

    /// Gradients of [`Backend::linear`]. No gradient of `W` is ever formed.
    ///
    /// With a `lora` path and its saved `down`, the ranges `path.a` and `path.b` of `d_parameters` are overwritten:
    /// `dB = scaling * dyᵀ down`, `dA = (scaling * dy B)ᵀ drop(x)`.
    /// `d_x`, when wanted, receives `dy W + drop'(scaling * dy B A)`.
    #[allow(clippy::type_complexity)]
    fn linear_backward(
        &self,
        d_y: &Self::Activations,
        x: &Self::Activations,
        weight: &Self::Linear,
        lora: Option<(&LoraPath<'_, Self>, &Self::Reals, &mut Self::Reals)>,
        d_x: Option<Target<'_, Self::Activations>>,
    ) -> Result<()>;

    /// Rotary position embedding (Su et al., 2104.09864) in place, on `heads` heads of `x: [T, heads * head_dim]`,
    /// pairing element `i` with `i + head_dim / 2` (the half-split layout of safetensors checkpoints).
    /// [`Direction::Backward`] rotates back, which is the gradient.
    fn rotary(
        &self,
        x: &mut Self::Activations,
        heads: usize,
        tables: &Self::Rotary,
        packing: &Self::Packing,
        direction: Direction,
    ) -> Result<()>;

    /// Causal attention within each packed sequence, with grouped key/value heads and an optional sliding window.
    /// `q, out: [T, heads * head_dim]`, `k, v: [T, kv_heads * head_dim]`; `log_sum_exp: [T * heads]` (row `t`, head `h` at
    /// `t * heads + h`) is saved for the backward pass. The score matrix of a long sequence is never materialized.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &self,
        q: &Self::Activations,
        k: &Self::Activations,
        v: &Self::Activations,
        packing: &Self::Packing,
        shape: &AttentionShape,
        out: &mut Self::Activations,
        log_sum_exp: &mut Self::Reals,
    ) -> Result<()>;

    /// Gradients of [`Backend::attention`] (the recomputing scheme of FlashAttention, 2205.14135).
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        d_out: &Self::Activations,
        q: &Self::Activations,
        k: &Self::Activations,
        v: &Self::Activations,
        out: &Self::Activations,
        log_sum_exp: &Self::Reals,
        packing: &Self::Packing,
        shape: &AttentionShape,
        d_q: &mut Self::Activations,
        d_k: &mut Self::Activations,
        d_v: &mut Self::Activations,
    ) -> Result<()>;

    /// `out = act(gate) * up`, elementwise (Shazeer, 2002.05202).
    fn gated(
        &self,
        gate: &Self::Activations,
        up: &Self::Activations,
        activation: GatedActivation,
        out: &mut Self::Activations,
    ) -> Result<()>;

    /// Gradients of [`Backend::gated`].
    fn gated_backward(
        &self,
        d_out: &Self::Activations,
        gate: &Self::Activations,
        up: &Self::Activations,
        activation: GatedActivation,
        d_gate: &mut Self::Activations,
        d_up: &mut Self::Activations,
    ) -> Result<()>;

    /// `x += y`.
    fn add(&self, x: &mut Self::Activations, y: &Self::Activations) -> Result<()>;

    /// `out[i] = x[rows[i]]`; rows are distinct.
    fn gather_rows(&self, x: &Self::Activations, rows: &Self::Indices, out: &mut Self::Activations) -> Result<()>;

    /// Gradient of [`Backend::gather_rows`]: `d_x[rows[i]] = d_out[i]`, all other rows zero.
    fn scatter_rows(&self, d_out: &Self::Activations, rows: &Self::Indices, d_x: &mut Self::Activations) -> Result<()>;

    /// Output head and cross-entropy over vocabulary chunks: the logits never exist whole.
    /// `hidden: [N, H]`, `losses: [N]` (nats, per position); `d_hidden`, when wanted, receives the gradient of the *sum*
    /// of the losses at once. The head is frozen.
    fn linear_cross_entropy(
        &self,
        hidden: &Self::Activations,
        head: &Self::Linear,
        targets: &Self::Indices,
        losses: &mut Self::Reals,
        d_hidden: Option<&mut Self::Activations>,
    ) -> Result<()>;

    /// `out[n] = log p(targets[n] | hidden[n])`, in nats, chunked as above.
    fn log_probabilities(
        &self,
        hidden: &Self::Activations,
        head: &Self::Linear,
        targets: &Self::Indices,
        out: &mut Self::Reals,
    ) -> Result<()>;

    /// The logits of a few rows, `[N * vocab]`: for decoding and for whole distributions.
    fn logits(&self, hidden: &Self::Activations, head: &Self::Linear, out: &mut Self::Reals) -> Result<()>;

    // ---- decoding ------------------------------------------------------------------------------------------------

    /// An empty cache for up to `capacity` tokens of one sequence in one layer.
    fn kv_cache(&self, capacity: usize, shape: &AttentionShape) -> Result<Self::KvCache>;

    /// Appends the keys and values of the new tokens, then attends from each of them to all tokens up to itself.
    fn attention_cached(
        &self,
        q: &Self::Activations,
        k: &Self::Activations,
        v: &Self::Activations,
        cache: &mut Self::KvCache,
        shape: &AttentionShape,
        out: &mut Self::Activations,
    ) -> Result<()>;

    // ---- exact sums and the optimizer ----------------------------------------------------------------------------

    /// Rounds each of the bucket's segments of `gradient` once (ties to even) to `round(g * 2^exponent)` and adds it to
    /// `sums`, which holds the bucket's elements.
    ///
    /// `flags[i]`, one for each segment of the whole vector, becomes the maximum of itself and of what segment `i` met: 0 when every |q| is at most
    /// `2^limit_bits`; else by how many powers of two it was exceeded (so that `exponent - flag` fits); or
    /// [`FLAG_NOT_FINITE`]. The sums of a flagged segment are unspecified.
    fn accumulate_fixed(
        &self,
        gradient: &Self::Reals,
        bucket: &Bucket<'_>,
        limit_bits: u32,
        sums: &mut Self::Integers,
        flags: &mut Self::Integers,
    ) -> Result<()>;

    /// `gradient = sums * 2^-exponent / divisor` in the bucket's segments, computed in f64 and rounded once.
    fn fixed_to_gradient(
        &self,
        sums: &Self::Integers,
        bucket: &Bucket<'_>,
        divisor: f64,
        gradient: &mut Self::Reals,
    ) -> Result<()>;

    /// `x += scale * y`, for gradients that are summed as floats: product and sum are rounded one after the other. Of `y`
    /// it takes as many elements as `x` has, from element `first` on.
    fn add_scaled(&self, x: &mut Self::Reals, scale: f32, y: &Self::Reals, first: usize) -> Result<()>;

    /// Copies all of `from` over the elements of `to` from `first` on.
    fn copy_reals(&self, from: &Self::Reals, to: &mut Self::Reals, first: usize) -> Result<()>;

    /// Copies all of `from` to `to`, which is as long, rounding to the nearest bf16, ties to even; NaN stays NaN.
    fn narrow(&self, from: &Self::Reals, to: &mut Self::Halves) -> Result<()>;

    /// Copies all of `from` over the elements of `to` from `first` on.
    fn widen(&self, from: &Self::Halves, to: &mut Self::Reals, first: usize) -> Result<()>;

    /// For each segment, the largest absolute value of `vector` in it (for the next step's exponents).
    fn max_abs(&self, vector: &Self::Reals, segments: &[Segment]) -> Result<Vec<f32>>;

    /// Sum of squares in f64, in a fixed order.
    fn squared_norm(&self, vector: &Self::Reals) -> Result<f64>;

    /// One AdamW update of all parameters (1711.05101): decay by `1 - lr * weight_decay`, then the bias-corrected step.
    /// The gradient is multiplied by `settings.gradient_scale` (clipping) first.
    fn adamw(
        &self,
        parameters: &mut Self::Reals,
        gradient: &Self::Reals,
        first_moment: &mut Self::Reals,
        second_moment: &mut Self::Reals,
        settings: &AdamW,
    ) -> Result<()>;
}

/// Where a gradient goes: over what was there, or on top of it.
#[derive(Debug)]
pub enum Target<'a, T> {
    /// Overwrite.
    Overwrite(&'a mut T),
    /// Add.
    Add(&'a mut T),
}

/// The adapter of one linear layer: ranges of one flat parameter vector.
pub struct LoraPath<'a, B: Backend> {
    /// All adapter parameters.
    pub parameters: &'a B::Reals,
    /// `A: [rank, in]`, row-major.
    pub a: Range<usize>,
    /// `B: [out, rank]`, row-major.
    pub b: Range<usize>,
    /// Rank of the path.
    pub rank: usize,
    /// Factor on the path.
    pub scaling: f32,
    /// Dropout on the path's input, in training.
    pub dropout: Option<Dropout<'a, B>>,
}

/// A dropout mask as a pure function of (seed, step, sample, module, position, channel): it never depends on rank,
/// packing or order. Kept channels are scaled by `1 / (1 - probability)`.
///
/// The mask word of channel `c` is word `c % 4` of
/// `Philox4x32-10(counter = [c / 4, position, sample, module], key = [seed ^ (seed >> 32) , step])` with 64-bit values cut to
/// their low 32 bits (see [`crate::Philox::dropout`] for the one definition); kept when `word >= probability * 2^32`.
pub struct Dropout<'a, B: Backend> {
    /// Share of channels set to zero, in `[0, 1)`.
    pub probability: f32,
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step, from 1.
    pub step: u64,
    /// Number of the adapted module in the model's order: layer and projection.
    pub module: u32,
    /// Sample and position of each row.
    pub packing: &'a B::Packing,
}

impl<B: Backend> Dropout<'_, B> {
    /// Anything at all.
    pub(crate) fn drops(&self) -> bool {
        self.probability > 0.0
    }

    /// Mask words below are dropped.
    pub(crate) fn threshold(&self) -> u64 {
        (f64::from(self.probability) * 4_294_967_296.0).ceil() as u64
    }

    /// Factor on what is kept.
    pub(crate) fn keep_scale(&self) -> f32 {
        (1.0 / (1.0 - f64::from(self.probability))) as f32
    }
}

/// A stretch of a flat vector, with its fixed-point exponent. The segments of a call ascend and do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Elements.
    pub range: Range<usize>,
    /// Values are held as `round(value * 2^exponent)`.
    pub exponent: i32,
}

/// Consecutive segments of a flat vector whose sums lie in a vector of their own, so that they can be reduced by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket<'a> {
    /// All segments of the flat vector.
    pub segments: &'a [Segment],
    /// Which of them are the bucket's.
    pub members: Range<usize>,
    /// Elements of the flat vector that the bucket's sums hold: those of its members, and what may lie between.
    pub elements: Range<usize>,
}

impl<'a> Bucket<'a> {
    /// The bucket of all segments of a vector of `len` elements.
    #[must_use]
    pub fn whole(segments: &'a [Segment], len: usize) -> Self {
        Self { segments, members: 0..segments.len(), elements: 0..len }
    }
}

/// Flag of [`Backend::accumulate_fixed`]: a NaN or an infinity.
pub const FLAG_NOT_FINITE: i64 = i64::MAX;

/// Shape of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token sees itself and the `window - 1` before it; all when `None`.
    pub window: Option<usize>,
}

/// How the weight of a norm is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Multiply by the weight.
    Plain,
    /// Multiply by one plus the weight (Gemma).
    UnitOffset,
}

/// Activation of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatedActivation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU, tanh approximation.
    GeluTanh,
}

/// Direction of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angle.
    Forward,
    /// By minus the angle.
    Backward,
}

/// Settings of one AdamW update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this update, from 1 (for bias correction).
    pub step: u64,
    /// Factor on the gradient: 1, or less when clipped.
    pub gradient_scale: f64,
}
