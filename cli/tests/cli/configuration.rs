//! `docs/configuration.md` holds every key with its type, default and meaning as the code has them. `BLESS=1` writes
//! its tables anew.

use ballast_coordinator::config::{KEYS, RunFile};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

const SECTIONS: &str = include_str!("../../../coordinator/src/config/sections.rs");

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md")
}

/// Doc comments of the fields, by dotted key. The doc comment of a section's struct is its name: "`[train]`".
fn meanings() -> BTreeMap<String, String> {
    let mut meanings = BTreeMap::new();
    let (mut section, mut comment) = (String::new(), String::new());
    for line in SECTIONS.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            comment = format!("{comment} {text}").trim().to_owned();
        } else if line.starts_with("pub struct") {
            section = comment.trim_matches(['`', '[', ']']).to_owned();
            comment.clear();
        } else if let Some(field) = line.strip_prefix("pub ") {
            let name = field.split(':').next().unwrap();
            meanings.insert(format!("{section}.{name}"), std::mem::take(&mut comment));
        } else if !line.starts_with("#[") {
            comment.clear();
        }
    }
    meanings
}

/// The default as TOML writes it.
fn default(defaults: &Value, section: &str, key: &str) -> String {
    let value = &defaults[section][key];
    let unset = value.is_null() || value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty);
    if unset {
        return "not set".into();
    }
    let value: toml::Value = serde_json::from_value(value.clone()).unwrap();
    format!("`{value}`")
}

fn table(section: &str, meanings: &BTreeMap<String, String>, defaults: &Value) -> String {
    let mut text = String::from("| key | allowed | default | meaning |\n|---|---|---|---|\n");
    for key in KEYS.iter().filter(|key| key.section() == section) {
        let name = key.name.split_once('.').unwrap().1;
        let meaning = meanings.get(key.name).unwrap_or_else(|| panic!("{} has no doc comment", key.name));
        assert!(meaning.ends_with('.'), "the doc comment of {} is no sentence: {meaning}", key.name);
        let allowed = key.kind.allowed();
        let default = default(defaults, section, name);
        let _ = writeln!(text, "| `{name}` | {allowed} | {default} | {} |", meaning.replace('|', "\\|"));
    }
    text
}

#[test]
fn every_key_stands_in_the_documentation() {
    let stands = std::fs::read_to_string(document()).unwrap();
    let (meanings, defaults) = (meanings(), serde_json::to_value(RunFile::default()).unwrap());
    let mut text = stands.clone();
    let mut sections: Vec<_> = KEYS.iter().map(|key| key.section()).collect();
    sections.dedup();
    for section in sections {
        let begin = format!("<!-- keys of {section} -->\n");
        let start = text.find(&begin).unwrap_or_else(|| panic!("{begin} is missing")) + begin.len();
        let end = start + text[start..].find("<!-- end -->").unwrap();
        text.replace_range(start..end, &table(section, &meanings, &defaults));
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(document(), &text).unwrap();
        return;
    }
    for (found, expected) in stands.lines().zip(text.lines()) {
        assert_eq!(found, expected, "docs/configuration.md: BLESS=1 writes the tables anew");
    }
    assert_eq!(stands.lines().count(), text.lines().count(), "docs/configuration.md: BLESS=1 writes the tables anew");
}
