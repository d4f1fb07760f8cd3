//! `docs/configuration.md` holds every key with its type, default and meaning as the code has them. `BLESS=1` writes
//! its tables anew.

use ballast_coordinator::config::{self, KEYS, Key};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md")
}

/// The default as TOML writes it.
fn default(key: &Key) -> String {
    let Some(value) = key.default() else { return "not set".into() };
    let value: toml::Value = serde_json::from_value(value).unwrap();
    format!("`{value}`")
}

fn table(section: &str, meanings: &BTreeMap<String, String>) -> String {
    let mut text = String::from("| key | allowed | default | meaning |\n|---|---|---|---|\n");
    for key in KEYS.iter().filter(|key| key.section() == section) {
        let (name, allowed, default) = (key.word(), key.kind.allowed(), default(key));
        let meaning = meanings[key.name].replace('|', "\\|");
        let _ = writeln!(text, "| `{name}` | {allowed} | {default} | {meaning} |");
    }
    text
}

#[test]
fn every_key_stands_in_the_documentation() {
    let stands = std::fs::read_to_string(document()).unwrap();
    let meanings = config::meanings();
    let mut text = stands.clone();
    let mut sections: Vec<_> = KEYS.iter().map(|key| key.section()).collect();
    sections.dedup();
    for section in sections {
        let begin = format!("<!-- keys of {section} -->\n");
        let start = text.find(&begin).unwrap_or_else(|| panic!("{begin} is missing")) + begin.len();
        let end = start + text[start..].find("<!-- end -->").unwrap();
        text.replace_range(start..end, &table(section, &meanings));
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
