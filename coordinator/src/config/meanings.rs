//! What sections and keys mean, in words: the doc comments of [`super::sections`], which are written once and serve readers of
//! the code, of `docs/configuration.md` and of the schema alike.

use std::collections::BTreeMap;

const SECTIONS: &str = include_str!("sections.rs");

/// Doc comments of the fields, by the name of a section (`train`) or of a key (`train.epochs`).
///
/// The doc comment of a section's struct is its name, "`[train]`"; the struct whose doc comment is no such name is the run file.
#[must_use]
pub fn meanings() -> BTreeMap<String, String> {
    let mut meanings = BTreeMap::new();
    let (mut section, mut comment) = (String::new(), String::new());
    for line in SECTIONS.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            comment = format!("{comment} {text}").trim().to_owned();
        } else if line.starts_with("pub struct") {
            let name = comment.strip_prefix("`[").and_then(|rest| rest.strip_suffix("]`"));
            section = name.map(|name| format!("{name}.")).unwrap_or_default();
            comment.clear();
        } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            meanings.insert(format!("{section}{field}"), std::mem::take(&mut comment));
        } else if !line.starts_with("#[") {
            comment.clear();
        }
    }
    meanings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KEYS, keys};

    #[test]
    fn every_section_and_every_key_has_its_sentence_and_nothing_else_has() {
        let meanings = meanings();
        let names = || keys::sections().into_iter().chain(KEYS.iter().map(|key| key.name));
        for name in names() {
            let meaning = meanings.get(name).unwrap_or_else(|| panic!("{name} has no doc comment"));
            assert!(meaning.ends_with('.'), "the doc comment of {name} is no sentence: {meaning}");
        }
        assert_eq!(meanings.len(), names().count());
    }
}
