//! What the value of a key may be: its type, its range, and the words for both.

use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use toml::Value;
use toml::de::ValueDeserializer;

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// An integer within these bounds, both included.
    Integer(i64, i64),
    /// A number above 0, at most this.
    Positive(f64),
    /// A number above the first of these, at most the second.
    Above(f64, f64),
    /// A number from 0 to this, both included.
    NotNegative(f64),
    /// A number from 0 (included) to 1 (not included).
    Fraction,
    /// A string that is not empty.
    Text,
    /// A run name: it becomes the name of a directory.
    Name,
    /// A path.
    Path,
    /// A path or a list of paths.
    Paths,
    /// A directory, a GGUF file or `hf:org/name`.
    Model,
    /// `model`, the name of a built-in chat template, or a path.
    Template,
    /// An IP address (or `localhost`) and a port.
    Address,
    /// Nothing, or the URL of a place for checkpoints.
    Store,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list of known words, or the one word that stands for all.
    Words {
        /// Stands for all.
        all: &'static str,
        /// The known words.
        known: &'static [&'static str],
    },
}

/// Why a value is not what its key may hold.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Refusal {
    /// It has another type: this, with its article.
    Type(&'static str),
    /// Its type is right, but this is wrong with it.
    Value(String),
}

/// What the URL of a store looks like.
const STORES: &[&str] = &["s3://bucket/prefix", "gs://bucket/prefix", "az://container/prefix", "file:///directory"];

/// Longest run name: it is a component of file names.
pub(super) const LONGEST_NAME: usize = 100;

impl Kind {
    /// What the key may hold, as messages and the documentation say it.
    #[must_use]
    pub fn allowed(&self) -> String {
        let quoted = |words: &[&str]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        match self {
            Self::Boolean => "`true` or `false`".into(),
            Self::Integer(min, i64::MAX) => format!("an integer, at least {min}"),
            Self::Integer(min, max) => format!("an integer from {min} to {max}"),
            Self::Positive(max) => format!("a number above 0, at most {max}"),
            Self::Above(least, max) => format!("a number above {least}, at most {max}"),
            Self::NotNegative(max) => format!("a number from 0 to {max}"),
            Self::Fraction => "a number from 0 to less than 1".into(),
            Self::Text => "a string that is not empty".into(),
            Self::Name => {
                format!("up to {LONGEST_NAME} letters, digits, `.`, `_` and `-`, beginning with a letter, digit or `_`")
            }
            Self::Path => "a path".into(),
            Self::Paths => "a path, or a list of different paths that is not empty".into(),
            Self::Model => "a directory, a GGUF file, or `hf:org/name`".into(),
            Self::Template => "`model`, the name of a built-in template, or the path of a Jinja file".into(),
            Self::Address => "an IP address or `localhost`, a colon and a port, such as `127.0.0.1:7070`".into(),
            Self::Store => format!("nothing, or a URL: {}", quoted(STORES)),
            Self::Word([word]) => format!("`{word}`"),
            Self::Word(words) => format!("one of {}", quoted(words)),
            Self::Words { all, known } => format!("`{all}`, or a list of different names out of {}", quoted(known)),
        }
    }

    /// Reads text of the environment or of `--set`, where strings stand without quotes and lists without brackets.
    pub(super) fn read_text(&self, text: &str) -> Value {
        let string = || Value::String(text.to_owned());
        let toml = || Value::deserialize(ValueDeserializer::parse(text).ok()?).ok();
        let list = || Value::Array(text.split(',').map(|item| Value::String(item.trim().to_owned())).collect());
        match self {
            Self::Boolean
            | Self::Integer(..)
            | Self::Positive(_)
            | Self::Above(..)
            | Self::NotNegative(_)
            | Self::Fraction => toml().filter(|value| !value.is_str()).unwrap_or_else(string),
            Self::Paths | Self::Words { .. } if text.starts_with('[') => toml().unwrap_or_else(string),
            Self::Paths if text.contains(',') => list(),
            Self::Words { all, .. } if text != *all && !text.is_empty() => list(),
            // In quotes it is TOML, where a newline can be written: "\n".
            _ if text.len() > 1 && text.starts_with('"') && text.ends_with('"') => toml().unwrap_or_else(string),
            _ => string(),
        }
    }

    /// The value in the type of its key (an integer becomes a float where a number is wanted).
    pub(super) fn check(&self, value: &Value) -> Result<Value, Refusal> {
        let wrong_type = || Refusal::Type(type_of(value));
        match (self, value) {
            (Self::Boolean, Value::Boolean(_)) => {}
            (Self::Integer(min, max), Value::Integer(n)) => {
                if n < min || n > max {
                    return refuse("is out of range");
                }
            }
            (Self::Positive(_) | Self::Above(..) | Self::NotNegative(_) | Self::Fraction, _) => {
                let number = match value {
                    Value::Float(number) => *number,
                    // Exact for every value in range.
                    Value::Integer(n) => *n as f64,
                    _ => return Err(wrong_type()),
                };
                self.check_number(number)?;
                return Ok(Value::Float(number));
            }
            (Self::Paths, Value::Array(items)) => check_list(items, check_path)?,
            (Self::Words { known, .. }, Value::Array(items)) => check_list(items, |word| check_word(known, word))?,
            (Self::Text, Value::String(text)) => check_text(text)?,
            (Self::Name, Value::String(text)) => check_name(text)?,
            (Self::Path | Self::Paths | Self::Template, Value::String(text)) => check_path(text)?,
            (Self::Model, Value::String(text)) => check_model(text)?,
            (Self::Address, Value::String(text)) => check_address(text)?,
            (Self::Store, Value::String(text)) => check_store(text)?,
            (Self::Word(words), Value::String(text)) => check_word(words, text)?,
            (Self::Words { all, .. }, Value::String(text)) => check_word(&[all], text)?,
            _ => return Err(wrong_type()),
        }
        Ok(value.clone())
    }

    /// A refused value as messages may show it, and logs keep it.
    pub(super) fn without_credentials(&self, shown: String) -> String {
        if matches!(self, Self::Store) && shown.contains(['@', '?']) { "\"(not shown)\"".into() } else { shown }
    }

    fn check_number(&self, number: f64) -> Result<(), Refusal> {
        let within = match self {
            Self::Positive(max) => number > 0.0 && number <= *max,
            Self::Above(least, max) => number > *least && number <= *max,
            Self::NotNegative(max) => number >= 0.0 && number <= *max,
            _ => (0.0..1.0).contains(&number),
        };
        if !number.is_finite() {
            return refuse("is not a finite number");
        }
        if within { Ok(()) } else { refuse("is out of range") }
    }
}

fn refuse<T>(problem: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Value(problem.into()))
}

/// The type of a TOML value, with its article.
pub(super) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a float",
        Value::Boolean(_) => "a boolean",
        Value::Datetime(_) => "a date or time",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// Items are strings, each passes `check`, none stands twice.
fn check_list(items: &[Value], check: impl Fn(&str) -> Result<(), Refusal>) -> Result<(), Refusal> {
    if items.is_empty() {
        return refuse("is empty");
    }
    for (index, item) in items.iter().enumerate() {
        let Value::String(text) = item else {
            return Err(Refusal::Type(match type_of(item) {
                "an integer" => "a list that holds an integer",
                "a float" => "a list that holds a float",
                "a boolean" => "a list that holds a boolean",
                "a list" => "a list that holds a list",
                "a table" => "a list that holds a table",
                _ => "a list that holds a date or time",
            }));
        };
        check(text)?;
        if items.iter().take(index).any(|earlier| earlier == item) {
            return refuse(format!("names `{text}` twice"));
        }
    }
    Ok(())
}

fn check_text(text: &str) -> Result<(), Refusal> {
    if text.is_empty() { refuse("is empty") } else { Ok(()) }
}

fn check_path(text: &str) -> Result<(), Refusal> {
    check_text(text)?;
    if text.contains('\0') {
        return refuse("holds a NUL character");
    }
    if text == "~" || text.starts_with("~/") {
        return refuse("begins with `~`, which only a shell expands: write the home directory out");
    }
    Ok(())
}

fn check_name(text: &str) -> Result<(), Refusal> {
    check_text(text)?;
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !text.starts_with(letter) {
        return refuse("begins with a character that it must not begin with");
    }
    if let Some(stranger) = text.chars().find(|c| !letter(*c) && !matches!(c, '.' | '-')) {
        return refuse(format!("holds {stranger:?}"));
    }
    if text.len() > LONGEST_NAME {
        return refuse(format!("is {} characters long", text.len()));
    }
    Ok(())
}

fn check_model(text: &str) -> Result<(), Refusal> {
    let Some(repository) = text.strip_prefix("hf:") else { return check_path(text) };
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    match repository.split_once('/') {
        Some((organization, name)) if part(organization) && part(name) => Ok(()),
        _ => refuse("does not name a model on the hub"),
    }
}

fn check_word(words: &[&str], text: &str) -> Result<(), Refusal> {
    if words.contains(&text) {
        return Ok(());
    }
    if text.is_empty() {
        return refuse("is empty");
    }
    let near = words.iter().find(|word| strsim::damerau_levenshtein(word, text) <= 1.max(word.len() / 4));
    let near = near.map(|word| format!(" (did you mean `{word}`?)")).unwrap_or_default();
    refuse(format!("does not know the word `{text}`{near}"))
}

/// The address a coordinator listens on, if `text` is one.
pub(super) fn parse_address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?))
        }
        Some(_) => None,
        None => text.parse().ok(),
    }
}

fn check_address(text: &str) -> Result<(), Refusal> {
    match parse_address(text) {
        Some(_) => Ok(()),
        None => refuse("is not an address with a port"),
    }
}

/// Only what says where: how to get in is the environment's, for a run file is shown, copied and kept.
fn check_store(text: &str) -> Result<(), Refusal> {
    if text.is_empty() {
        return Ok(());
    }
    let Some((scheme, rest)) = text.split_once("://") else { return refuse("is not a URL") };
    if let Some(stranger) = rest.chars().find(|c| matches!(c, '@' | '?' | '#') || c.is_whitespace() || c.is_control()) {
        return refuse(format!("holds {stranger:?}; credentials and options come from the environment"));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if prefix.trim_end_matches('/').split('/').any(|segment| matches!(segment, "." | "..")) {
        return refuse("goes up and down its own path");
    }
    match (scheme, bucket) {
        ("file", "") if !prefix.is_empty() => Ok(()),
        ("file", _) => refuse("does not name a directory by its whole path"),
        ("s3" | "gs" | "az", "") => refuse("names no bucket"),
        ("s3" | "gs" | "az", _) => Ok(()),
        _ => refuse(format!("begins with `{scheme}://`, which is not known")),
    }
}
