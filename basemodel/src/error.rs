//! Everything that can be wrong with a base model.

use ballast_proto::{Coded, ErrorCode};
use std::path::{Path, PathBuf};

/// Why a base model cannot be used. Every message names the file or tensor concerned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is there, or `model.source` names nothing that Ballast knows.
    #[error("{0}")]
    NotFound(String),
    /// The model is sound, but of a kind that Ballast does not compute.
    #[error("{place}: {what} is not supported")]
    Unsupported {
        /// File (and tensor) concerned.
        place: String,
        /// What is not supported, by the name the file gives it.
        what: String,
    },
    /// A file breaks its format.
    #[error("{}: {what}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor is missing, has another shape than the architecture asks for, or holds NaN or infinity.
    #[error("tensor {name} of {}: {what}", file.display())]
    Tensor {
        /// The tensor, by its Hugging Face name.
        name: String,
        /// The file that holds it or should.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The hub did not give the model. The message never holds the token.
    #[error("cannot download {repo}: {what}")]
    Download {
        /// `org/name`.
        repo: String,
        /// Why, and what to do.
        what: String,
    },
    /// The tokenizer cannot be loaded or rebuilt.
    #[error("tokenizer of {}: {what}", file.display())]
    Tokenizer {
        /// The file it comes from.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl Error {
    pub(crate) fn unsupported(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Unsupported { place: place.into(), what: what.into() }
    }

    pub(crate) fn malformed(file: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { file: file.to_owned(), what: what.into() }
    }

    pub(crate) fn tensor(file: &Path, name: &str, what: impl Into<String>) -> Self {
        Self::Tensor { name: name.to_owned(), file: file.to_owned(), what: what.into() }
    }

    pub(crate) fn tokenizer(file: &Path, what: impl Into<String>) -> Self {
        Self::Tokenizer { file: file.to_owned(), what: what.into() }
    }
}

impl Coded for Error {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) => ErrorCode::ModelNotFound,
            Self::Unsupported { .. } => ErrorCode::ModelUnsupported,
            Self::Malformed { .. } => ErrorCode::ModelMalformed,
            Self::Tensor { .. } => ErrorCode::ModelTensor,
            Self::Download { .. } => ErrorCode::ModelDownload,
            Self::Tokenizer { .. } => ErrorCode::Tokenizer,
        }
    }
}
