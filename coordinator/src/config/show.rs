//! The resolved run file as TOML, each value with its origin.

use super::keys::{KEYS, Key};
use super::layers::Origin;
use super::load::Resolved;
use std::fmt::Write;
use toml::Value;

impl Resolved {
    /// The run file as it is in effect: TOML that loads back, a comment after each value telling where it comes from.
    /// Keys that are optional and not set stand as comments.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        let document = Value::try_from(&self.run).unwrap_or_else(|_| Value::Table(toml::Table::new()));
        for key in KEYS {
            if key.section() != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                section = key.section();
                let _ = writeln!(text, "{gap}[{section}]");
            }
            let _ = writeln!(text, "{}", self.line(key, &document));
        }
        text
    }

    fn line(&self, key: &Key, document: &Value) -> String {
        let name = key.word();
        let value = document.get(key.section()).and_then(|section| section.get(name));
        let comment = match (self.origin(key.name), key.name) {
            (Origin::Default, "run.name") => "default: the run file's name".to_owned(),
            (Origin::Default, "run.dir") => "default: runs/<run.name>".to_owned(),
            (origin, _) => origin.to_string(),
        };
        match value {
            Some(value) => format!("{name} = {value}  # {comment}"),
            None => format!("# {name} is not set  # {comment}"),
        }
    }
}
