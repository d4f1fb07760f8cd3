//! The architecture that GGUF metadata describes (llama.cpp's `llama`: LLaMA, SmolLM2, Mistral).

use super::{Activation, Architecture, RotaryScaling};
use crate::Error;
use crate::encoding::Encoding;
use crate::gguf::Gguf;

/// Reads and checks the description; `bytes` are the whole file, for the tensor of rotary factors.
pub(crate) fn parse(gguf: &Gguf, bytes: &[u8]) -> Result<Architecture, Error> {
    let (metadata, file) = (&gguf.metadata, gguf.metadata.file());
    let missing = |key: &str| Error::malformed(file, format!("metadata key {key} is missing"));
    let size = |key: &str| metadata.size(key)?.ok_or_else(|| missing(key));
    let family = metadata.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    if family != "llama" {
        return Err(Error::unsupported(file.display().to_string(), format!("general.architecture {family}")));
    }
    refuse_variants(gguf)?;

    let (hidden_size, heads) = (size("llama.embedding_length")?, size("llama.attention.head_count")?);
    let has = |tensor: &str| gguf.tensors.contains_key(tensor);
    let epsilon = "llama.attention.layer_norm_rms_epsilon";
    let architecture = Architecture {
        family: family.to_owned(),
        hidden_size,
        intermediate_size: size("llama.feed_forward_length")?,
        layers: size("llama.block_count")?,
        heads,
        kv_heads: metadata.size("llama.attention.head_count_kv")?.unwrap_or(heads),
        head_dim: head_dim(gguf, hidden_size, heads)?,
        vocab_size: vocab_size(gguf)?,
        max_positions: size("llama.context_length")?,
        norm_epsilon: metadata.number(epsilon)?.ok_or_else(|| missing(epsilon))? as f32,
        norm_unit_offset: false,
        qk_norm: false,
        rope_theta: metadata.number("llama.rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: RotaryScaling::Default,
        sliding_window: metadata.size("llama.attention.sliding_window")?,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        qkv_bias: has("blk.0.attn_q.bias"),
        output_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        tied_embeddings: !has("output.weight"),
    };
    architecture.validate(file)?;
    let rope_scaling = rotary_scaling(gguf, bytes, &architecture)?;
    let architecture = Architecture { rope_scaling, ..architecture };
    architecture.validate(file)?;
    Ok(architecture)
}

fn refuse_variants(gguf: &Gguf) -> Result<(), Error> {
    let metadata = &gguf.metadata;
    let unsupported = |what: String| Err(Error::unsupported(metadata.file().display().to_string(), what));
    if let Some(experts) = metadata.size("llama.expert_count")?.filter(|&n| n > 0) {
        return unsupported(format!("a mixture of {experts} experts"));
    }
    let known = ["llama.logit_scale", "llama.residual_scale", "llama.embedding_scale", "llama.attention.scale"];
    match known.into_iter().find(|key| metadata.contains(key)) {
        Some(key) => unsupported(format!("metadata key {key}")),
        None => Ok(()),
    }
}

fn head_dim(gguf: &Gguf, hidden_size: usize, heads: usize) -> Result<usize, Error> {
    let (metadata, file) = (&gguf.metadata, gguf.metadata.file());
    let head_dim = match metadata.size("llama.attention.key_length")? {
        Some(given) => given,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let what =
                format!("llama.embedding_length {hidden_size} is not a multiple of llama.attention.head_count {heads}");
            return Err(Error::malformed(file, what));
        }
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(other) = metadata.size(key)?.filter(|&n| n != head_dim) {
            return Err(Error::unsupported(
                file.display().to_string(),
                format!("{key} {other} with heads of {head_dim} channels"),
            ));
        }
    }
    Ok(head_dim)
}

/// The embedding table decides; the metadata key is younger than many files.
fn vocab_size(gguf: &Gguf) -> Result<usize, Error> {
    match gguf.tensors.get("token_embd.weight").and_then(|t| t.shape.first()) {
        Some(&rows) => Ok(rows),
        None => Err(Error::tensor(gguf.metadata.file(), "model.embed_tokens.weight", "is missing")),
    }
}

fn rotary_scaling(gguf: &Gguf, bytes: &[u8], architecture: &Architecture) -> Result<RotaryScaling, Error> {
    let (metadata, file) = (&gguf.metadata, gguf.metadata.file());
    let unsupported = |what: String| Error::unsupported(file.display().to_string(), what);
    let factor = match metadata.number("llama.rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // The key of the first llama.cpp releases, for linear scaling only.
        None => metadata.number("llama.rope.scale_linear")?,
    };
    let kind = metadata.text("llama.rope.scaling.type")?.unwrap_or(if factor.is_some() { "linear" } else { "none" });
    let tensor = gguf.tensors.get("rope_freqs.weight");
    match (kind, factor, tensor) {
        ("none", _, None) => Ok(RotaryScaling::Default),
        ("none", _, Some(tensor)) => {
            if tensor.encoding != Encoding::F32 || tensor.shape != [architecture.head_dim / 2] {
                return Err(unsupported("the form of tensor rope_freqs.weight".into()));
            }
            let mut factors = vec![0.0; architecture.head_dim / 2];
            Encoding::F32.decode(bytes.get(tensor.range.clone()).unwrap_or_default(), &mut factors);
            let original = metadata.size("llama.rope.scaling.original_context_length")?.unwrap_or(8192);
            derive_llama3(&factors, architecture.rope_theta, original)
                .ok_or_else(|| unsupported("tensor rope_freqs.weight with other factors than Llama 3's".into()))
        }
        ("linear", Some(factor), None) => Ok(RotaryScaling::Linear { factor }),
        ("linear", None, None) => Err(Error::malformed(file, "metadata key llama.rope.scaling.factor is missing")),
        (other, _, _) => Err(unsupported(format!("rotary scaling {other}"))),
    }
}

/// Llama 3 files carry no scaling parameters, only the divisor of each frequency. The largest divisor is the factor;
/// the ramp's limits are 1 and 4 in every such model, and the result is believed only if it gives all divisors back.
fn derive_llama3(divisors: &[f32], theta: f64, original_max_positions: usize) -> Option<RotaryScaling> {
    if divisors.iter().all(|&d| d == 1.0) {
        return Some(RotaryScaling::Default);
    }
    let factor = divisors.iter().copied().fold(1.0, f32::max);
    let (factor, low, high) = (factor.to_string().parse::<f64>().ok().filter(|f| f.is_finite())?, 1.0, 4.0);
    let original = original_max_positions as f64;
    let agrees = divisors.iter().enumerate().all(|(i, &stored)| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / (2 * divisors.len()) as f64);
        let ramp = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - ramp) / factor + ramp);
        (f64::from(stored) - expected).abs() <= 1e-4 * expected
    });
    agrees.then_some(RotaryScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_positions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The divisors as llama.cpp's converter writes them (f32 throughout, three cases).
    fn divisors(factor: f32, theta: f32, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let wavelength = std::f32::consts::TAU * theta.powf(2.0 * i as f32 / head_dim as f32);
                if wavelength < 8192.0 / 4.0 {
                    1.0
                } else if wavelength > 8192.0 {
                    factor
                } else {
                    let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            })
            .collect()
    }

    #[test]
    fn llama3_scaling_is_derived_from_its_divisors() {
        for factor in [8.0, 32.0] {
            let derived = derive_llama3(&divisors(factor, 500_000.0, 128), 500_000.0, 8192).unwrap();
            let expected = RotaryScaling::Llama3 {
                factor: factor.into(),
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions: 8192,
            };
            assert_eq!(derived, expected);
        }
        assert_eq!(derive_llama3(&[1.0; 32], 10_000.0, 8192), Some(RotaryScaling::Default));
    }

    #[test]
    fn other_divisors_are_not_believed() {
        let mut longrope = divisors(8.0, 500_000.0, 128);
        longrope[3] = 1.01;
        assert_eq!(derive_llama3(&longrope, 500_000.0, 8192), None);
        assert_eq!(derive_llama3(&[f32::NAN, 2.0], 500_000.0, 8192), None);
        assert_eq!(derive_llama3(&[f32::INFINITY, 2.0], 500_000.0, 8192), None);
        assert_eq!(derive_llama3(&[0.0, 0.5], 500_000.0, 8192), None);
    }
}
