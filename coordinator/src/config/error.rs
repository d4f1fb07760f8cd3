//! What can be wrong with a run file: one error, naming key, value, origin and what is allowed.

use super::layers::Origin;
use ballast_proto::{Coded, ErrorCode};
use std::fmt;
use std::path::PathBuf;

/// Why a run file was refused. Nothing has been started, written or listened on when it is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there, not readable, or not UTF-8.
    #[error("cannot read the run file {}: {reason}", path.display())]
    Unreadable {
        /// The run file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file is not TOML.
    #[error("{}, line {line}, column {column}: not TOML: {reason}", path.display())]
    Syntax {
        /// The run file.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// 1-based column, in characters.
        column: usize,
        /// What the parser expected.
        reason: String,
    },
    /// No such key.
    #[error("unknown key `{key}` ({origin}); {hint}")]
    UnknownKey {
        /// Dotted key.
        key: String,
        /// Where it stands.
        origin: Origin,
        /// The nearest known key, or the known ones.
        hint: String,
    },
    /// The value is of another type than the key's.
    #[error("`{key}` = {value} ({origin}) is {found}; allowed: {allowed}")]
    WrongType {
        /// Dotted key.
        key: &'static str,
        /// The value as written.
        value: String,
        /// Where it stands.
        origin: Origin,
        /// Type of the value, with its article.
        found: &'static str,
        /// What the key may hold.
        allowed: String,
    },
    /// The value is of the right type, but not allowed.
    #[error("`{key}` = {value} ({origin}) {problem}; allowed: {allowed}")]
    BadValue {
        /// Dotted key.
        key: &'static str,
        /// The value as written.
        value: String,
        /// Where it stands.
        origin: Origin,
        /// What is wrong with it.
        problem: String,
        /// What the key may hold.
        allowed: String,
    },
    /// Two values that cannot both be meant.
    #[error(transparent)]
    Contradiction(#[from] Box<Contradiction>),
    /// A key without a default is not set.
    #[error("`{key}` is missing from {}; set it to {allowed}", path.display())]
    Missing {
        /// Dotted key.
        key: &'static str,
        /// The run file.
        path: PathBuf,
        /// What the key may hold.
        allowed: String,
    },
    /// The coordinator would be reachable from other machines, without TLS or tokens.
    #[error(
        "`cluster.bind` = {value} ({origin}) listens beyond loopback, where anyone could join the run: set {missing}, as \
         `ballast certs` makes them; or bind to 127.0.0.1, or accept it with --insecure (cluster.insecure = true) on a \
         network you trust"
    )]
    InsecureBind {
        /// The address.
        value: String,
        /// Where it stands.
        origin: Origin,
        /// The settings that would make it safe.
        missing: &'static str,
    },
}

/// Two values that cannot both be meant.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{one} contradicts {other}: {why}")]
pub struct Contradiction {
    /// The value that was judged.
    pub one: Side,
    /// The value that it contradicts.
    pub other: Side,
    /// The reason, and what to do.
    pub why: String,
}

/// One side of a contradiction.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// Dotted key.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// Where it stands.
    pub origin: Origin,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` = {} ({})", self.key, self.value, self.origin)
    }
}

impl Coded for ConfigError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Unreadable { .. } | Self::Syntax { .. } => ErrorCode::RunFileUnreadable,
            Self::UnknownKey { .. } => ErrorCode::RunFileUnknownKey,
            Self::WrongType { .. } => ErrorCode::RunFileWrongType,
            Self::BadValue { .. } => ErrorCode::RunFileBadValue,
            Self::Contradiction(_) => ErrorCode::RunFileContradiction,
            Self::Missing { .. } => ErrorCode::RunFileMissingKey,
            Self::InsecureBind { .. } => ErrorCode::InsecureBind,
        }
    }
}
