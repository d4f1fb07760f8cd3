//! An opened base model.

use crate::{Architecture, ChatTemplate, Error};

/// A base model whose headers are read and checked, and whose weights are memory-mapped.
#[derive(Debug)]
pub struct BaseModel {
    architecture: Architecture,
    chat_template: Option<ChatTemplate>,
    stop_ids: Vec<u32>,
}

impl BaseModel {
    /// What the decoder looks like.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// SHA-256 (hex) over the model's files, wherever they lie. Computed once.
    pub fn sha256(&self) -> Result<String, Error> {
        todo!()
    }

    /// The tensor of this Hugging Face name, row-major, checked to have this shape and only finite values.
    pub fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let _ = (name, shape);
        todo!()
    }

    /// Whether the model holds a tensor of this Hugging Face name.
    #[must_use]
    pub fn has_tensor(&self, name: &str) -> bool {
        let _ = name;
        todo!()
    }

    /// The Hugging Face names of all tensors, sorted.
    #[must_use]
    pub fn tensor_names(&self) -> Vec<String> {
        todo!()
    }

    /// The tokenizer: `tokenizer.json`, or rebuilt from GGUF metadata.
    pub fn tokenizer(&self) -> Result<tokenizers::Tokenizer, Error> {
        todo!()
    }

    /// The model's own chat template, where it has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<ChatTemplate> {
        self.chat_template.clone()
    }

    /// Token ids that end an answer, ascending.
    #[must_use]
    pub fn stop_ids(&self) -> Vec<u32> {
        self.stop_ids.clone()
    }
}
