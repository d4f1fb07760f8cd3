//! `adapter_config.json`, as PEFT 0.21 writes and reads it.

use crate::json;
use serde_json::{Value, json};

/// Its name within an adapter directory.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// What of an adapter is not in its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The base model as the run file names it.
    pub model_source: String,
    /// Branch, tag or commit of a hub model.
    pub revision: Option<String>,
    /// Rank.
    pub rank: u32,
    /// Alpha.
    pub alpha: f64,
    /// Dropout while training.
    pub dropout: f64,
    /// Whether the scaling is `alpha / sqrt(rank)`.
    pub rslora: bool,
    /// Module names, in the model's order.
    pub target_modules: Vec<String>,
}

impl AdapterConfig {
    /// The file's bytes: a pure function of the configuration, with every key that PEFT itself writes.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let base_model = self.model_source.strip_prefix("hf:").unwrap_or(&self.model_source);
        // PEFT writes alpha as an integer where it is one, and some readers insist.
        let alpha = if self.alpha.fract() == 0.0 && self.alpha.abs() < 1e15 {
            Value::from(self.alpha as i64)
        } else {
            Value::from(self.alpha)
        };
        let config = json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": {},
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": base_model,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "kasa_config": null,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": alpha,
            "lora_bias": false,
            "lora_dropout": self.dropout,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "monteclora_config": null,
            "peft_type": "LORA",
            "peft_version": "0.21.2",
            "qalora_group_size": 16,
            "r": self.rank,
            "rank_pattern": {},
            "revision": self.revision,
            "target_modules": self.target_modules,
            "target_parameters": null,
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": null,
            "use_bdlora": null,
            "use_dora": false,
            "use_qalora": false,
            "use_rslora": self.rslora,
            "velora_config": null,
        });
        json::file(&config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AdapterConfig {
        AdapterConfig {
            model_source: "hf:org/name".into(),
            revision: None,
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            rslora: false,
            target_modules: vec!["q_proj".into(), "v_proj".into()],
        }
    }

    #[test]
    fn names_the_base_model_as_peft_does() {
        let json: Value = serde_json::from_slice(&config().to_json()).unwrap();
        assert_eq!(json["base_model_name_or_path"], "org/name");
        assert_eq!(json["lora_alpha"].as_i64(), Some(8));
        assert_eq!(json["target_modules"], json!(["q_proj", "v_proj"]));
        let local = AdapterConfig { model_source: "/models/x".into(), alpha: 1.5, ..config() };
        let json: Value = serde_json::from_slice(&local.to_json()).unwrap();
        assert_eq!(json["base_model_name_or_path"], "/models/x");
        assert_eq!(json["lora_alpha"].as_f64(), Some(1.5));
    }

    #[test]
    fn has_the_keys_of_peft() {
        // Keys of a file written by PEFT 0.21.2's `save_pretrained` for a plain LoRA adapter.
        let json: Value = serde_json::from_slice(&config().to_json()).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 41);
        assert!(keys.is_sorted());
    }
}
