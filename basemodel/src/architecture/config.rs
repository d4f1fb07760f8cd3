//! The architecture that a `config.json` describes.
//!
//! Defaults are those of the `transformers` configuration classes, because a saved configuration may omit them.

use super::fields::Fields;
use super::{Activation, Architecture, RotaryScaling};
use crate::Error;
use serde_json::{Map, Value};
use std::path::Path;

/// Reads and checks the configuration; `file` is named in errors.
pub(crate) fn parse(config: &Map<String, Value>, file: &Path) -> Result<Architecture, Error> {
    let fields = Fields::new(file, "", config);
    let family = fields.required("model_type", fields.text("model_type")?)?;
    let traits = Traits::of(family).ok_or_else(|| fields.unsupported(format!("model_type {family}")))?;
    refuse_variants(&fields)?;

    let size = |key| fields.required(key, fields.size(key)?);
    let (hidden_size, heads) = (size("hidden_size")?, size("num_attention_heads")?);
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    let (rope_theta, rope_scaling) = rotary(&fields)?;
    let architecture = Architecture {
        family: family.to_owned(),
        hidden_size,
        intermediate_size: size("intermediate_size")?,
        layers: size("num_hidden_layers")?,
        heads,
        kv_heads: fields.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: head_dim(&fields, traits.head_dim, hidden_size, heads)?,
        vocab_size: size("vocab_size")?,
        max_positions: size("max_position_embeddings")?,
        norm_epsilon: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        norm_unit_offset: traits.gemma,
        qk_norm: traits.qk_norm,
        rope_theta,
        rope_scaling,
        sliding_window: sliding_window(&fields, traits.windowed)?,
        activation: activation(&fields)?,
        embedding_scale: if traits.gemma { (hidden_size as f32).sqrt() } else { 1.0 },
        qkv_bias: traits.qkv_bias || (traits.optional_biases && attention_bias),
        output_bias: traits.optional_biases && attention_bias,
        mlp_bias: traits.mlp_bias && fields.flag("mlp_bias")?.unwrap_or(false),
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(traits.gemma),
    };
    architecture.validate(file)?;
    Ok(architecture)
}

/// What sets one family apart from the others, beyond what its configuration says.
struct Traits {
    /// `attention_bias` is honoured (query, key, value and output alike).
    optional_biases: bool,
    /// Query, key and value always have biases.
    qkv_bias: bool,
    /// `mlp_bias` is honoured.
    mlp_bias: bool,
    qk_norm: bool,
    /// Channels a head where the configuration is silent and they are not `hidden_size / heads`.
    head_dim: Option<usize>,
    /// `sliding_window` is in force whenever it is given.
    windowed: bool,
    /// Norms offset by one, scaled and tied embeddings.
    gemma: bool,
}

impl Traits {
    fn of(family: &str) -> Option<Self> {
        let plain = Self {
            optional_biases: false,
            qkv_bias: false,
            mlp_bias: false,
            qk_norm: false,
            head_dim: None,
            windowed: false,
            gemma: false,
        };
        Some(match family {
            "llama" => Self { optional_biases: true, mlp_bias: true, ..plain },
            "mistral" => Self { windowed: true, ..plain },
            "qwen2" => Self { qkv_bias: true, ..plain },
            "qwen3" => Self { optional_biases: true, qk_norm: true, head_dim: Some(128), ..plain },
            "gemma" => Self { optional_biases: true, head_dim: Some(256), gemma: true, ..plain },
            _ => return None,
        })
    }
}

/// Refuses what would make the same tensors mean something else.
fn refuse_variants(fields: &Fields<'_>) -> Result<(), Error> {
    if fields.value("quantization_config").is_some() {
        return Err(fields.unsupported("quantization_config (a quantized checkpoint)"));
    }
    let classes = fields.value("architectures").and_then(Value::as_array).into_iter().flatten();
    if let Some(class) = classes.filter_map(Value::as_str).find(|c| !c.ends_with("ForCausalLM")) {
        return Err(fields.unsupported(format!("the model class {class}")));
    }
    if let Some(factor) = fields.number("partial_rotary_factor")?.filter(|&f| f != 1.0) {
        return Err(fields.unsupported(format!("partial_rotary_factor {factor}")));
    }
    if fields.flag("use_bidirectional_attention")? == Some(true) {
        return Err(fields.unsupported("use_bidirectional_attention"));
    }
    Ok(())
}

fn head_dim(fields: &Fields<'_>, default: Option<usize>, hidden_size: usize, heads: usize) -> Result<usize, Error> {
    if let Some(given) = fields.size("head_dim")?.or(default) {
        return Ok(given);
    }
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        let what = format!("hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}");
        return Err(Error::malformed(fields.file, what));
    }
    Ok(hidden_size / heads)
}

fn activation(fields: &Fields<'_>) -> Result<Activation, Error> {
    // Gemma's `hidden_activation` came after a `hidden_act` that named the wrong function.
    let name = match fields.text("hidden_activation")? {
        Some(name) => name,
        None => fields.text("hidden_act")?.unwrap_or("silu"),
    };
    match name {
        "silu" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        other => Err(fields.unsupported(format!("hidden_act {other}"))),
    }
}

fn sliding_window(fields: &Fields<'_>, windowed: bool) -> Result<Option<usize>, Error> {
    let kinds = fields.value("layer_types").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    if let Some(kind) = kinds.into_iter().find(|&k| k != "full_attention") {
        return Err(fields.unsupported(format!("layer_types with {kind}")));
    }
    if windowed {
        return fields.size("sliding_window");
    }
    if fields.flag("use_sliding_window")? == Some(true) {
        return Err(fields.unsupported("use_sliding_window"));
    }
    Ok(None)
}

/// Base and scaling of the rotary frequencies, from `rope_parameters` (transformers 5) or `rope_theta` and
/// `rope_scaling` (before).
fn rotary(fields: &Fields<'_>) -> Result<(f64, RotaryScaling), Error> {
    let (name, object) = match fields.object("rope_parameters")? {
        Some(object) => ("rope_parameters", Some(object)),
        None => ("rope_scaling", fields.object("rope_scaling")?),
    };
    let outer_theta = fields.number("rope_theta")?;
    let Some(object) = object else { return Ok((outer_theta.unwrap_or(10_000.0), RotaryScaling::Default)) };
    let prefix = format!("{name}.");
    let rope = Fields::new(fields.file, &prefix, object);
    let theta = rope.number("rope_theta")?.or(outer_theta).unwrap_or(10_000.0);
    let kind = match rope.text("rope_type")? {
        Some(kind) => Some(kind),
        None => rope.text("type")?,
    };
    let number = |key| rope.required(key, rope.number(key)?);
    let scaling = match kind.unwrap_or("default") {
        // Per-layer-type parameters (Gemma 3) are objects within the object.
        "default" if object.values().any(Value::is_object) => {
            return Err(fields.unsupported(format!("{name} per layer type")));
        }
        "default" => RotaryScaling::Default,
        "linear" => RotaryScaling::Linear { factor: number("factor")? },
        "llama3" => RotaryScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_positions: rope
                .required("original_max_position_embeddings", rope.size("original_max_position_embeddings")?)?,
        },
        other => return Err(fields.unsupported(format!("{name} of type {other}"))),
    };
    Ok((theta, scaling))
}
