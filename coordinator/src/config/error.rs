//! What can be wrong with a run file: one error, naming key, value, origin and what is allowed.

use super::layers::Origin;
use ballast_proto::{Coded, ErrorCode};
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
        key: String,
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
        key: String,
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
    #[error("`{key}` = {value} ({origin}) contradicts `{other}` = {other_value} ({other_origin}): {why}")]
    Contradiction {
        /// Dotted key that was judged.
        key: String,
        /// Its value.
        value: String,
        /// Where it stands.
        origin: Origin,
        /// Dotted key that it contradicts.
        other: String,
        /// The other's value.
        other_value: String,
        /// Where that stands.
        other_origin: Origin,
        /// The reason, and what to do.
        why: String,
    },
    /// A key without a default is not set.
    #[error("`{key}` is missing from {}; set it to {allowed}", path.display())]
    Missing {
        /// Dotted key.
        key: String,
        /// The run file.
        path: PathBuf,
        /// What the key may hold.
        allowed: String,
    },
    /// The coordinator would be reachable from other machines, without TLS or tokens.
    #[error(
        "`cluster.bind` = {value} ({origin}) listens beyond loopback, where anyone could join the run: \
         bind to 127.0.0.1, or accept it with --insecure (cluster.insecure = true) on a network you trust"
    )]
    InsecureBind {
        /// The address.
        value: String,
        /// Where it stands.
        origin: Origin,
    },
}

impl Coded for ConfigError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Unreadable { .. } | Self::Syntax { .. } => ErrorCode::RunFileUnreadable,
            Self::UnknownKey { .. } => ErrorCode::RunFileUnknownKey,
            Self::WrongType { .. } => ErrorCode::RunFileWrongType,
            Self::BadValue { .. } => ErrorCode::RunFileBadValue,
            Self::Contradiction { .. } => ErrorCode::RunFileContradiction,
            Self::Missing { .. } => ErrorCode::RunFileMissingKey,
            Self::InsecureBind { .. } => ErrorCode::InsecureBind,
        }
    }
}
