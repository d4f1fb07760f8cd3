//! Typed access to the fields of a JSON configuration; every error names file and field.

use crate::Error;
use serde_json::{Map, Value};
use std::path::Path;

/// One object of the configuration.
pub(super) struct Fields<'a> {
    pub(super) file: &'a Path,
    /// How the object is reached: empty, or `rope_scaling.`.
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a Path, prefix: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { file, prefix, map }
    }

    /// The field; `null` is as good as absent.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(&self, key: &str, wanted: &str, cast: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong = || {
            let shown: String = value.to_string().chars().take(60).collect();
            Error::malformed(self.file, format!("{}{key} is {shown}; {wanted} is wanted", self.prefix))
        };
        cast(value).map(Some).ok_or_else(wrong)
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, Error> {
        self.typed(key, "a non-negative integer", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, Error> {
        self.typed(key, "an object", Value::as_object)
    }

    pub(super) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| Error::malformed(self.file, format!("{}{key} is missing", self.prefix)))
    }

    /// Refuses the model: what it asks for is sound but not computed.
    pub(super) fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::unsupported(self.file.display().to_string(), what)
    }
}
