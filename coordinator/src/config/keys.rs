//! Every key of the run file and what it may hold. Tests hold this table against the structs of [`super::sections`].

use super::kind::Kind::{self, *};
use super::words::TargetModules;

/// A key of the run file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted name, `section.key`.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
}

impl Key {
    /// Its section.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(section, _)| section)
    }

    /// Its name within the section.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, word)| word)
    }
}

/// Longest interval of the timeout ladder: a day.
const DAY_MS: i64 = 86_400_000;

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind }
}

/// All keys, in the order of the sections.
pub const KEYS: &[Key] = &[
    key("run.name", Name),
    key("run.dir", Path),
    key("run.seed", Integer(0, i64::MAX)),
    key("model.source", Model),
    key("model.revision", Text),
    key("model.dtype", Word(&["f32", "bf16"])),
    key("lora.rank", Integer(1, 4096)),
    key("lora.alpha", Positive(65_536.0)),
    key("lora.rslora", Boolean),
    key("lora.dropout", Fraction),
    key("lora.target_modules", Words { all: TargetModules::ALL_LINEAR, known: TargetModules::KNOWN }),
    key("data.train", Paths),
    key("data.format", Word(&["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "fields"])),
    key("data.prompt_field", Text),
    key("data.answer_field", Text),
    key("data.system", Text),
    key("data.template", Template),
    key("data.train_turns", Word(&["last", "all"])),
    key("data.on_bad_row", Word(&["fail", "skip"])),
    key("data.max_tokens", Integer(2, 1 << 24)),
    key("data.on_too_long", Word(&["fail", "truncate", "skip"])),
    key("data.limit", Integer(1, i64::MAX)),
    key("data.cache_dir", Path),
    key("lookahead.mode", Word(&["off", "real", "virtual"])),
    key("lookahead.tokens", Integer(0, 65_536)),
    key("lookahead.prefix", Text),
    key("lookahead.connector", Text),
    key("lookahead.turns", Word(&["last", "all"])),
    key("lookahead.preview_level", Word(&["text", "token"])),
    key("lookahead.short_answer", Word(&["full", "cap", "skip"])),
    key("lookahead.force", Boolean),
    key("train.epochs", Integer(1, 1_000_000)),
    key("train.max_steps", Integer(1, i64::MAX)),
    key("train.global_batch", Integer(1, 1 << 20)),
    key("train.micro_batch_tokens", Integer(1, 1 << 24)),
    key("train.activation_checkpointing", Boolean),
    key("train.learning_rate", Positive(10.0)),
    key("train.schedule", Word(&["constant", "linear", "cosine"])),
    key("train.warmup_steps", Integer(0, i64::MAX)),
    key("train.weight_decay", NotNegative(10.0)),
    key("train.beta1", Fraction),
    key("train.beta2", Fraction),
    key("train.epsilon", Positive(1.0)),
    key("train.clip_norm", NotNegative(1e9)),
    key("train.reduction", Word(&["exact", "fast", "fast-bf16"])),
    key("train.on_nonfinite", Word(&["stop", "skip"])),
    key("train.max_skipped", Integer(1, 1_000_000)),
    key("eval.heldout", Path),
    key("eval.heldout_limit", Integer(1, i64::MAX)),
    key("eval.kl_positions", Integer(0, 1024)),
    key("eval.probes", Path),
    key("eval.samples", Integer(0, 1024)),
    key("eval.max_new_tokens", Integer(0, 65_536)),
    key("cluster.workers", Integer(1, 4096)),
    key("cluster.min_workers", Integer(1, 4096)),
    key("cluster.gather_ms", Integer(0, DAY_MS)),
    key("cluster.device", Word(&["cpu", "cuda"])),
    key("cluster.threads", Integer(0, 4096)),
    key("cluster.bind", Address),
    key("cluster.insecure", Boolean),
    key("cluster.prefetch_steps", Integer(1, 1024)),
    key("cluster.collective", Word(&["auto", "tcp"])),
    key("cluster.on_slow_worker", Word(&["warn", "drain"])),
    key("cluster.slow_factor", Above(1.0, 1000.0)),
    key("cluster.slow_steps", Integer(2, 1000)),
    key("cluster.heartbeat_ms", Integer(10, DAY_MS)),
    key("cluster.lease_ms", Integer(10, DAY_MS)),
    key("cluster.progress_ms", Integer(10, DAY_MS)),
    key("cluster.collective_ms", Integer(10, DAY_MS)),
    key("cluster.load_ms", Integer(10, DAY_MS)),
    key("security.certificate", Path),
    key("security.private_key", Path),
    key("security.client_ca", Path),
    key("security.token_file", Path),
    key("checkpoint.every", Integer(0, i64::MAX)),
    key("checkpoint.keep", Integer(1, 1_000_000)),
    key("checkpoint.resume", Word(&["auto", "never"])),
    key("checkpoint.store", Store),
    key("checkpoint.on_failure", Word(&["stop", "continue"])),
    key("observe.log_every", Integer(1, i64::MAX)),
];

/// The key of this dotted name.
#[must_use]
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Names of the sections, in order.
pub(super) fn sections() -> Vec<&'static str> {
    let mut sections: Vec<_> = KEYS.iter().map(Key::section).collect();
    sections.dedup();
    sections
}

/// What to tell somebody who wrote `name`, which is no key: the nearest one, or else the known ones.
pub(super) fn hint(name: &str) -> String {
    let word = name.rsplit('.').next().unwrap_or(name);
    let distance = |key: &Key| {
        // The right key in the wrong section is nearer than any misspelling.
        if key.word() == word { 0 } else { strsim::damerau_levenshtein(key.name, name) }
    };
    let nearest = KEYS.iter().map(|key| (distance(key), key)).min_by_key(|(near, _)| *near);
    if !sections().contains(&name)
        && let Some((near, key)) = nearest
        && near <= (name.chars().count() / 4).clamp(1, 4)
    {
        return format!("did you mean `{}`?", key.name);
    }
    let section = name.split('.').next().unwrap_or(name);
    let names: Vec<_> = KEYS.iter().filter(|key| key.section() == section).map(Key::word).collect();
    if names.is_empty() {
        let sections = sections();
        let near = sections.iter().map(|s| (strsim::damerau_levenshtein(s, section), s)).min();
        return match near {
            Some((distance, near)) if distance <= 2 => format!("did you mean the section [{near}]?"),
            _ => format!("the sections are {}", sections.join(", ")),
        };
    }
    format!("the keys of [{section}] are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunFile;
    use serde_json::{Value, json};

    fn default_keys() -> Vec<(String, Value)> {
        let Value::Object(sections) = serde_json::to_value(RunFile::default()).unwrap() else { unreachable!() };
        let keys = |(section, values): (String, Value)| -> Vec<(String, Value)> {
            let Value::Object(values) = values else { unreachable!() };
            values.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)).collect()
        };
        sections.into_iter().flat_map(keys).collect()
    }

    #[test]
    fn the_table_names_every_field_of_the_sections_in_order() {
        let fields: Vec<_> = default_keys().into_iter().map(|(name, _)| name).collect();
        let table: Vec<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        assert_eq!(fields, table);
    }

    #[test]
    fn every_default_is_allowed() {
        for (name, value) in default_keys() {
            let unset = ["run.name", "run.dir", "model.source", "data.train"].contains(&name.as_str());
            if value.is_null() || unset {
                continue;
            }
            let value: toml::Value = serde_json::from_value(value).unwrap();
            find(&name).unwrap().kind.check(&value).unwrap_or_else(|refusal| panic!("{name}: {refusal:?}"));
        }
    }

    #[test]
    fn the_words_of_the_table_are_those_of_the_enums() {
        for key in KEYS {
            let Word(words) = key.kind else { continue };
            let (section, name) = key.name.split_once('.').unwrap();
            for word in words {
                serde_json::from_value::<RunFile>(json!({section: {name: word}})).unwrap();
            }
            let refused = serde_json::from_value::<RunFile>(json!({section: {name: "?"}})).unwrap_err().to_string();
            assert_eq!(refused.matches('`').count() / 2 - 1, words.len(), "{refused} {words:?}");
        }
    }

    #[test]
    fn hints() {
        assert_eq!(hint("train.epoch"), "did you mean `train.epochs`?");
        assert_eq!(hint("trian.epochs"), "did you mean `train.epochs`?");
        assert_eq!(hint("train.rank"), "did you mean `lora.rank`?");
        assert_eq!(hint("epochs"), "did you mean `train.epochs`?");
        assert_eq!(hint("lora.bogus"), "the keys of [lora] are rank, alpha, rslora, dropout, target_modules");
        assert!(hint("zzzzzzzz.y").starts_with("the sections are run, model, lora,"));
        assert_eq!(hint("loar"), "did you mean the section [lora]?");
    }
}
