//! The key-value part of a GGUF file.

use crate::Error;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A metadata value; integers of all widths are widened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `u8` to `u64`.
    Unsigned(u64),
    /// `i8` to `i64`.
    Signed(i64),
    /// `f32`.
    F32(f32),
    /// `f64`.
    F64(f64),
    /// `bool`.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// A flat array.
    Array(Array),
}

/// The array types that a tokenizer is made of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Array {
    /// Tokens, merges.
    Strings(Vec<String>),
    /// Token types.
    I32(Vec<i32>),
    /// Scores.
    F32(Vec<f32>),
    /// Anything else; skipped.
    Other,
}

/// Metadata with typed access; every error names file and key.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    file: PathBuf,
    values: HashMap<String, Value>,
}

impl Metadata {
    pub(crate) fn new(file: &Path, values: HashMap<String, Value>) -> Self {
        Self { file: file.to_owned(), values }
    }

    /// The file it was read from.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Whether the key is there, of whatever type.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        cast: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        match self.values.get(key) {
            None => Ok(None),
            Some(value) => cast(value)
                .map(Some)
                .ok_or_else(|| Error::malformed(&self.file, format!("metadata key {key} is not {wanted}"))),
        }
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        self.get(key, "a string", |v| if let Value::String(s) = v { Some(s.as_str()) } else { None })
    }

    /// A non-negative integer that fits `usize`.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, Error> {
        self.get(key, "a non-negative integer", |v| match *v {
            Value::Unsigned(n) => usize::try_from(n).ok(),
            Value::Signed(n) => usize::try_from(n).ok(),
            _ => None,
        })
    }

    /// A token id.
    pub(crate) fn id(&self, key: &str) -> Result<Option<u32>, Error> {
        match self.size(key)? {
            None => Ok(None),
            Some(n) => match u32::try_from(n) {
                Ok(id) => Ok(Some(id)),
                Err(_) => Err(Error::malformed(&self.file, format!("metadata key {key} is not a token id"))),
            },
        }
    }

    /// A real number. An f32 stands for the shortest decimal that it rounds from: what was written as `1e-5` is read
    /// as `1e-5`, not as `9.99999974e-6`.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.get(key, "a number", |v| match *v {
            Value::F32(x) => x.to_string().parse().ok(),
            Value::F64(x) => Some(x),
            _ => None,
        })
    }

    /// A truth value.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.get(key, "a boolean", |v| if let Value::Bool(b) = v { Some(*b) } else { None })
    }

    /// An array of strings.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<&[String]>, Error> {
        self.get(key, "an array of strings", |v| {
            if let Value::Array(Array::Strings(s)) = v { Some(s.as_slice()) } else { None }
        })
    }

    /// An array of `i32`.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<&[i32]>, Error> {
        self.get(
            key,
            "an array of i32",
            |v| if let Value::Array(Array::I32(n)) = v { Some(n.as_slice()) } else { None },
        )
    }

    /// An array of `f32`.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<&[f32]>, Error> {
        self.get(
            key,
            "an array of f32",
            |v| if let Value::Array(Array::F32(n)) = v { Some(n.as_slice()) } else { None },
        )
    }

    /// The text of the token whose id this key holds.
    pub(crate) fn token_text(&self, id_key: &str) -> Result<Option<String>, Error> {
        let (Some(id), Some(tokens)) = (self.id(id_key)?, self.strings("tokenizer.ggml.tokens")?) else {
            return Ok(None);
        };
        match tokens.get(id as usize) {
            Some(text) => Ok(Some(text.clone())),
            None => {
                let what = format!("metadata key {id_key} is {id}, but there are {} tokens", tokens.len());
                Err(Error::malformed(&self.file, what))
            }
        }
    }
}
