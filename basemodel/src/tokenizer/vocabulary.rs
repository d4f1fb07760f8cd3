//! The token list of a GGUF file.

use crate::Error;
use crate::gguf::Metadata;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// What a token is (llama.cpp's numbering of `tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenType {
    /// Made by merges.
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// Never part of text: begin, end, turn marks.
    Control,
    /// Found in text before anything is split.
    UserDefined,
    /// Not in use.
    Unused,
    /// One byte of what has no token.
    Byte,
}

/// Tokens in the order of their ids, with their types.
pub(super) struct Vocabulary<'a> {
    file: &'a Path,
    tokens: &'a [String],
    types: Vec<TokenType>,
}

impl<'a> Vocabulary<'a> {
    /// Reads and checks the list: types known and as many as tokens, no token twice.
    pub(super) fn read(metadata: &'a Metadata) -> Result<Self, Error> {
        let file = metadata.file();
        let wrong = |what: String| Error::tokenizer(file, what);
        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let tokens = tokens.ok_or_else(|| wrong("metadata key tokenizer.ggml.tokens is missing".into()))?;
        let types = match metadata.integers("tokenizer.ggml.token_type")? {
            Some(types) => types.iter().map(|&t| token_type(t)).collect::<Option<Vec<_>>>(),
            None => Some(vec![TokenType::Normal; tokens.len()]),
        };
        let types = types.ok_or_else(|| wrong("tokenizer.ggml.token_type holds a type other than 1 to 6".into()))?;
        if types.len() != tokens.len() || tokens.is_empty() {
            return Err(wrong(format!("has {} tokens and {} token types", tokens.len(), types.len())));
        }
        let mut seen = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = seen.insert(token.as_str(), id) {
                return Err(wrong(format!("tokens {first} and {id} are both {token:?}")));
            }
        }
        Ok(Self { file, tokens, types })
    }

    /// Every token with its type, in the order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a str, TokenType)> {
        self.tokens.iter().map(String::as_str).zip(self.types.iter().copied())
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn text(&self, id: u32) -> Result<&'a str, Error> {
        let text = self.tokens.get(id as usize).map(String::as_str);
        text.ok_or_else(|| Error::tokenizer(self.file, format!("token {id} is wanted, but there are {}", self.len())))
    }

    /// The `vocab` of a BPE model: every token, so that ids stay what they are.
    pub(super) fn ids(&self) -> Map<String, Value> {
        self.tokens.iter().zip(0u32..).map(|(token, id)| (token.clone(), id.into())).collect()
    }

    /// The `added_tokens` of a `tokenizer.json`: what is found in text before anything is split. GGUF does not say
    /// whether such a token swallows the blanks around it; none does.
    pub(super) fn added_tokens(&self) -> Vec<Value> {
        let added = self.iter().zip(0u32..).filter_map(|((content, kind), id)| {
            let special = match kind {
                TokenType::Control | TokenType::Unknown => true,
                TokenType::UserDefined => false,
                TokenType::Normal | TokenType::Unused | TokenType::Byte => return None,
            };
            Some(json!({
                "id": id, "content": content, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }))
        });
        added.collect()
    }
}

fn token_type(number: i32) -> Option<TokenType> {
    Some(match number {
        1 => TokenType::Normal,
        2 => TokenType::Unknown,
        3 => TokenType::Control,
        4 => TokenType::UserDefined,
        5 => TokenType::Unused,
        6 => TokenType::Byte,
        _ => return None,
    })
}
