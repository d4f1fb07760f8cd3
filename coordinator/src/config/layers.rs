//! Where settings come from: the file, the environment, `--set`. Each setting remembers its origin.

use super::error::ConfigError;
use super::keys::{self, Key};
use super::kind::{Refusal, type_of};
use std::fmt;
use std::path::Path;
use toml::Value;
use toml::de::{DeTable, DeValue};

/// Where a value of the resolved run file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The run file.
    File {
        /// File name, without its directory.
        name: String,
        /// 1-based line.
        line: usize,
    },
    /// An environment variable of this name.
    Environment(String),
    /// `--set`.
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { name, line } => write!(f, "{name}, line {line}"),
            Self::Environment(variable) => write!(f, "environment variable {variable}"),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// A key that was set, with a value that it may hold.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) key: &'static Key,
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// Environment variables that set keys of the run file begin with this. A single underscore (`BALLAST_LOG`) does not.
const PREFIX: &str = "BALLAST__";

/// Run files are written by people: a longer one is something else.
const LONGEST_FILE: u64 = 1 << 20;

/// The variables of this process's environment that set keys of the run file.
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
    let mut variables: Vec<_> = std::env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    variables.sort();
    variables
}

/// Reads the run file.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |reason: String| ConfigError::Unreadable { path: path.to_owned(), reason };
    let metadata = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?;
    if !metadata.is_file() {
        return Err(unreadable("it is not a file".into()));
    }
    if metadata.len() > LONGEST_FILE {
        return Err(unreadable(format!("it has {} bytes, and no run file is that long", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
    String::from_utf8(bytes)
        .map_err(|e| unreadable(format!("it is not UTF-8 at byte {}", e.utf8_error().valid_up_to())))
}

/// The settings of a run file's text.
pub(super) fn from_file(path: &Path, text: &str) -> Result<Vec<Setting>, ConfigError> {
    let document = DeTable::parse(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        let reason = error.message().lines().collect::<Vec<_>>().join(", ");
        ConfigError::Syntax { path: path.to_owned(), line, column, reason }
    })?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let at = |start: usize| Origin::File { name: name.clone(), line: position(text, start).0 };
    let mut entries = Vec::new();
    for (section, value) in document.get_ref() {
        let start = section.span().start;
        let section = section.get_ref().as_ref();
        let DeValue::Table(table) = value.get_ref() else {
            return Err(not_a_section(section, value.get_ref(), at(start)));
        };
        if table.is_empty() && !keys::sections().contains(&section) {
            return Err(unknown(section, at(start)));
        }
        entries.extend(
            table
                .iter()
                .map(|(key, value)| (key.span().start, format!("{section}.{}", key.get_ref()), value.get_ref())),
        );
    }
    // The error told is the first in the file, not in the alphabet.
    entries.sort_by_key(|(start, ..)| *start);
    let settings = entries.into_iter().map(|(start, name, value)| {
        let key = keys::find(&name).ok_or_else(|| unknown(&name, at(start)))?;
        match owned(value) {
            Ok(value) => setting(key, value, at(start)),
            Err(number) => Err(unfit(key.name, number, at(start), key.kind.allowed())),
        }
    });
    settings.collect()
}

/// The settings of environment variables: `BALLAST__TRAIN__EPOCHS` sets `train.epochs`.
pub(super) fn from_environment(variables: &[(String, String)]) -> Result<Vec<Setting>, ConfigError> {
    let settings = variables.iter().filter_map(|(variable, text)| {
        let name = variable.strip_prefix(PREFIX)?.replace("__", ".").to_ascii_lowercase();
        Some(from_text(&name, text, Origin::Environment(variable.clone())))
    });
    settings.collect()
}

/// The settings of `--set section.key=value`.
pub(super) fn from_overrides(overrides: &[(String, String)]) -> Result<Vec<Setting>, ConfigError> {
    overrides.iter().map(|(name, text)| from_text(name, text, Origin::Set)).collect()
}

fn from_text(name: &str, text: &str, origin: Origin) -> Result<Setting, ConfigError> {
    let key = keys::find(name).ok_or_else(|| unknown(name, origin.clone()))?;
    setting(key, key.kind.read_text(text), origin)
}

/// A setting of a key that may hold the value.
fn setting(key: &'static Key, value: Value, origin: Origin) -> Result<Setting, ConfigError> {
    let (refusal, value) = match key.kind.check(&value) {
        Ok(value) => return Ok(Setting { key, value, origin }),
        Err(refusal) => (refusal, key.kind.without_credentials(shown(&value))),
    };
    let (key, allowed) = (key.name, key.kind.allowed());
    Err(match refusal {
        Refusal::Type(found) => ConfigError::WrongType { key, value, origin, found, allowed },
        Refusal::Value(problem) => ConfigError::BadValue { key, value, origin, problem, allowed },
    })
}

fn unknown(name: &str, origin: Origin) -> ConfigError {
    ConfigError::UnknownKey { key: name.to_owned(), origin, hint: keys::hint(name) }
}

fn unfit(key: &'static str, value: String, origin: Origin, allowed: String) -> ConfigError {
    ConfigError::BadValue { key, value, origin, problem: "does not fit into 64 bits".into(), allowed }
}

/// A top-level value where a section should stand.
fn not_a_section(name: &str, value: &DeValue<'_>, origin: Origin) -> ConfigError {
    let Some(key) = keys::sections().into_iter().find(|section| *section == name) else {
        return unknown(name, origin);
    };
    let allowed = format!("a section, written [{name}]");
    match owned(value) {
        Ok(value) => ConfigError::WrongType { key, value: shown(&value), origin, found: type_of(&value), allowed },
        Err(number) => unfit(key, number, origin, allowed),
    }
}

/// A parsed value without its spans, or the number in it that fits no type of TOML.
fn owned(value: &DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Datetime(datetime) => Value::Datetime(*datetime),
        DeValue::Integer(integer) => {
            let number = i64::from_str_radix(integer.as_str(), integer.radix());
            Value::Integer(number.map_err(|_| integer.to_string())?)
        }
        DeValue::Float(float) => Value::Float(float.as_str().parse().map_err(|_| float.as_str().to_owned())?),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| owned(item.get_ref())).collect::<Result<_, _>>()?)
        }
        DeValue::Table(entries) => {
            let entries = entries.iter().map(|(key, value)| Ok((key.get_ref().to_string(), owned(value.get_ref())?)));
            Value::Table(entries.collect::<Result<_, String>>()?)
        }
    })
}

/// A value as TOML writes it, cut to what a message can bear.
pub(super) fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// 1-based line and column (in characters) of a byte of the text.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}
