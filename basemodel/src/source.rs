//! Where a base model lies.

use crate::{BaseModel, Error};
use std::path::PathBuf;

/// A parsed `model.source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// `config.json`, safetensors and `tokenizer.json` in a directory.
    Directory(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
    /// A model of the Hugging Face hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// The one `.gguf` file of the repository to use (`hf:org/name/file.gguf`); safetensors when not given.
        file: Option<String>,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl ModelSource {
    /// Parses `model.source` and `model.revision`.
    pub fn parse(source: &str, revision: Option<&str>) -> Result<Self, Error> {
        let _ = (source, revision);
        todo!()
    }

    /// Finds or downloads the files, opens them and checks their headers. Blocking.
    pub fn fetch(&self) -> Result<BaseModel, Error> {
        todo!()
    }
}
