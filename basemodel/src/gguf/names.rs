//! Tensor names of llama.cpp and of Hugging Face.

/// `(llama.cpp, Hugging Face)` outside of the layers.
const GLOBAL: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// `(llama.cpp, Hugging Face)` within a layer.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The Hugging Face name of a tensor of a llama GGUF file; `None` for tensors that have none (`rope_freqs.weight`).
pub(super) fn hugging_face(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    if let Some((_, theirs)) = GLOBAL.iter().find(|(ours, _)| *ours == module) {
        return Some(format!("{theirs}.{kind}"));
    }
    let (layer, part) = module.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok().filter(|n: &u32| n.to_string() == layer)?;
    let (_, theirs) = LAYER.iter().find(|(ours, _)| *ours == part)?;
    Some(format!("model.layers.{layer}.{theirs}.{kind}"))
}

/// Whether llama.cpp's converter interleaved the rotary halves of this tensor's heads.
pub(super) fn is_interleaved(hugging_face_name: &str) -> bool {
    hugging_face_name.contains(".q_proj.") || hugging_face_name.contains(".k_proj.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated() {
        for (ours, theirs) in [
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("output_norm.weight", Some("model.norm.weight")),
            ("output.weight", Some("lm_head.weight")),
            ("blk.0.attn_norm.weight", Some("model.layers.0.input_layernorm.weight")),
            ("blk.29.attn_output.weight", Some("model.layers.29.self_attn.o_proj.weight")),
            ("blk.7.attn_k.bias", Some("model.layers.7.self_attn.k_proj.bias")),
            ("blk.3.ffn_down.weight", Some("model.layers.3.mlp.down_proj.weight")),
            ("rope_freqs.weight", None),
            ("blk.03.ffn_down.weight", None),
            ("blk.-1.ffn_down.weight", None),
            ("blk.1.ffn_down.scale", None),
            ("blk.1", None),
            ("", None),
        ] {
            assert_eq!(hugging_face(ours).as_deref(), theirs, "{ours}");
        }
        assert!(is_interleaved("model.layers.0.self_attn.q_proj.weight"));
        assert!(!is_interleaved("model.layers.0.self_attn.v_proj.weight"));
    }
}
