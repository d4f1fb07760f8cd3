//! What can be wrong with the data of a run.

use ballast_proto::{Coded, ErrorCode};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

/// Where a row stands: its file and its place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// The place.
    pub place: Place,
}

/// A place within a data file, counted from 1 for lines and from 0 for array elements and rows, as editors and programs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a JSONL file.
    Line(u64),
    /// An element of a JSON array.
    Element(u64),
    /// A row of a Parquet file.
    Row(u64),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Line(line) => write!(f, "{}, line {line}", self.file.display()),
            Place::Element(index) => write!(f, "{}, element {index}", self.file.display()),
            Place::Row(index) => write!(f, "{}, row {index}", self.file.display()),
        }
    }
}

/// An error of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file cannot be opened, read, decompressed or parsed as a whole.
    #[error("cannot read {path}: {reason}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A row is malformed.
    #[error("{origin}: {problem}")]
    BadRow {
        /// Which row.
        origin: Origin,
        /// What is wrong, naming the field.
        problem: String,
    },
    /// The chat template does not compile, or cannot render a row.
    #[error("{0}")]
    Template(String),
    /// No row is left.
    #[error("{0}")]
    Empty(String),
    /// A sample is longer than allowed.
    #[error(
        "{origin}: the sample has {tokens} tokens, more than {max_tokens}; raise data.max_tokens, or set data.on_too_long \
         to \"truncate\" or \"skip\""
    )]
    TooLong {
        /// Which row.
        origin: Origin,
        /// Its length.
        tokens: usize,
        /// `data.max_tokens`, or the base model's own limit.
        max_tokens: usize,
    },
    /// A prompt to be answered is longer than the base model takes.
    #[error("{origin}: the prompt has {tokens} tokens, more than {max_tokens}; shorten it, or raise data.max_tokens")]
    PromptTooLong {
        /// Which row.
        origin: Origin,
        /// Its length.
        tokens: usize,
        /// `data.max_tokens`, or the base model's own limit.
        max_tokens: usize,
    },
    /// Samples could be longer than the base model takes.
    #[error(
        "data.max_tokens = {max_tokens}, but the base model has only {max_positions} positions; allowed: at most these"
    )]
    MaxTokens {
        /// `data.max_tokens`.
        max_tokens: usize,
        /// The base model's limit.
        max_positions: usize,
    },
    /// The rows were rewritten before.
    #[error("{0}")]
    LookAheadTwice(String),
    /// The preview would hold every whole answer.
    #[error("{0}")]
    LookAheadShortAnswers(String),
    /// The tokenizer failed, or does not fit the base model.
    #[error("{0}")]
    Tokenizer(String),
    /// The cache of prepared sets, or the directory for prepared rows, cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Cache {
        /// File or directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The base model cannot be read.
    #[error("{message}")]
    Model {
        /// The base model's own code.
        code: ErrorCode,
        /// The base model's own message.
        message: String,
    },
}

impl Coded for DataError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Unreadable { .. } => ErrorCode::DataUnreadable,
            Self::BadRow { .. } => ErrorCode::DataBadRow,
            Self::Template(_) => ErrorCode::ChatTemplate,
            Self::Empty(_) => ErrorCode::DataEmpty,
            Self::TooLong { .. } | Self::PromptTooLong { .. } => ErrorCode::DataTooLong,
            Self::MaxTokens { .. } => ErrorCode::RunFileBadValue,
            Self::LookAheadTwice(_) => ErrorCode::LookAheadTwice,
            Self::LookAheadShortAnswers(_) => ErrorCode::LookAheadShortAnswers,
            Self::Tokenizer(_) => ErrorCode::Tokenizer,
            Self::Cache { .. } => ErrorCode::DataCache,
            Self::Model { code, .. } => *code,
        }
    }
}

impl DataError {
    /// An unreadable file.
    pub(crate) fn unreadable(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Unreadable { path: path.to_owned(), reason: reason.to_string() }
    }

    /// A malformed row.
    pub(crate) fn bad_row(origin: &Origin, problem: impl Into<String>) -> Self {
        Self::BadRow { origin: origin.clone(), problem: problem.into() }
    }

    /// A failure around the cache or the prepared rows.
    pub(crate) fn cache(path: &Path, reason: &io::Error) -> Self {
        Self::Cache { path: path.to_owned(), reason: reason.to_string() }
    }
}
