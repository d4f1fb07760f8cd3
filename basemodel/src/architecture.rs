//! What a decoder looks like: one description for every family, differing by switches.

mod check;
pub(crate) mod config;
mod fields;
pub(crate) mod gguf;
mod tiny;

/// A LLaMA-family decoder, as `config.json` or GGUF metadata describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// `model_type` of the configuration: `llama`, `mistral`, ...
    pub family: String,
    /// Size of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Channels a head.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// Epsilon of every RMSNorm.
    pub norm_epsilon: f32,
    /// Norm weights are stored as an offset from one (Gemma).
    pub norm_unit_offset: bool,
    /// Query and key heads are normalized before the rotation (Qwen 3, Gemma 3).
    pub qk_norm: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How rotary frequencies are stretched.
    pub rope_scaling: RotaryScaling,
    /// Sliding attention window, in tokens (Mistral).
    pub sliding_window: Option<usize>,
    /// Activation of the gate.
    pub activation: Activation,
    /// Factor on embeddings (Gemma: the root of `hidden_size`).
    pub embedding_scale: f32,
    /// Biases on query, key and value (Qwen 2).
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub output_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// The output head is the embedding table.
    pub tied_embeddings: bool,
}

/// Activation of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu`.
    Silu,
    /// `gelu_pytorch_tanh`.
    GeluTanh,
}

/// Stretching of rotary frequencies for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RotaryScaling {
    /// Frequencies as they are.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are high.
        high_freq_factor: f64,
        /// Context the model was first trained for.
        original_max_positions: usize,
    },
}

/// The linear layers of a decoder layer, in the order in which adapters are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// Query.
    Q,
    /// Key.
    K,
    /// Value.
    V,
    /// Attention output.
    O,
    /// MLP gate.
    Gate,
    /// MLP up.
    Up,
    /// MLP down.
    Down,
}

impl Projection {
    /// All seven.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module's name in checkpoints and run files: `q_proj`, ...
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The block that holds it: `self_attn` or `mlp`.
    #[must_use]
    pub fn block(self) -> &'static str {
        match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }

    /// The projection of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }
}

impl Architecture {
    /// `(out, in)` of a projection's weight.
    #[must_use]
    pub fn projection_shape(&self, projection: Projection) -> (usize, usize) {
        let (hidden, heads, kv) = (self.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match projection {
            Projection::Q => (heads, hidden),
            Projection::K | Projection::V => (kv, hidden),
            Projection::O => (hidden, heads),
            Projection::Gate | Projection::Up => (self.intermediate_size, hidden),
            Projection::Down => (hidden, self.intermediate_size),
        }
    }
}
