//! The one table of errors that a user can meet.

use std::fmt;
use tonic::{Code, Status};

/// Exit codes of the `ballast` binary.
pub mod exit {
    /// The work is done.
    pub const DONE: u8 = 0;
    /// It failed; running it again unchanged will not help.
    pub const FAILED: u8 = 1;
    /// Bad usage or run file: nothing was started (`EX_USAGE`).
    pub const USAGE: u8 = 64;
    /// Stopped after a checkpoint, or refused for a passing reason: start it again (`EX_TEMPFAIL`).
    pub const RETRY: u8 = 75;
}

macro_rules! error_table {
    ($($(#[$group:meta])* $name:ident = $code:literal, $grpc:ident, $retry:literal, $exit:ident, $title:literal;)*) => {
        /// A stable error code. Codes are never reused; each has a page in `docs/errors/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode { $( #[doc = concat!("`", $code, "`: ", $title, ".")] $name, )* }

        impl ErrorCode {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The code as users see it, such as `B1001`.
            #[must_use]
            pub fn as_str(self) -> &'static str { match self { $(Self::$name => $code),* } }

            /// What the error is, in a few words.
            #[must_use]
            pub fn title(self) -> &'static str { match self { $(Self::$name => $title),* } }

            /// The gRPC status code it travels with.
            #[must_use]
            pub fn grpc(self) -> Code { match self { $(Self::$name => Code::$grpc),* } }

            /// Whether the same call may succeed when tried again.
            #[must_use]
            pub fn retryable(self) -> bool { match self { $(Self::$name => $retry),* } }

            /// Exit code of the process that ends with it.
            #[must_use]
            pub fn exit_code(self) -> u8 { match self { $(Self::$name => exit::$exit),* } }
        }
    };
}

// B1 run file, B2 data, B3 base model, B4 cluster, B5 storage, B6 training, B9 internal.
error_table! {
    // name = code, gRPC status, retryable, exit code, title;
    RunFileUnreadable = "B1001", InvalidArgument, false, USAGE, "the run file cannot be read or is not TOML";
    RunFileUnknownKey = "B1002", InvalidArgument, false, USAGE, "unknown key in the run file";
    RunFileWrongType = "B1003", InvalidArgument, false, USAGE, "a value of the run file has the wrong type";
    RunFileBadValue = "B1004", InvalidArgument, false, USAGE, "a value of the run file is out of range or not allowed";
    RunFileContradiction = "B1005", InvalidArgument, false, USAGE, "two values of the run file contradict each other";
    RunFileMissingKey = "B1006", InvalidArgument, false, USAGE, "a required key of the run file is missing";
    InsecureBind = "B1007", InvalidArgument, false, USAGE, "what leaves the machine needs TLS and tokens, or --insecure";
    Usage = "B1008", InvalidArgument, false, USAGE, "the command line is not understood";
    SecurityFile = "B1009", InvalidArgument, false, USAGE, "a certificate, key or token file cannot be used";

    DataUnreadable = "B2001", FailedPrecondition, false, FAILED, "a data file cannot be read";
    DataBadRow = "B2002", FailedPrecondition, false, FAILED, "a row of the data is malformed";
    DataEmpty = "B2003", FailedPrecondition, false, FAILED, "no row is left to train on";
    DataTooLong = "B2004", FailedPrecondition, false, FAILED, "a sample is longer than data.max_tokens";
    ChatTemplate = "B2005", FailedPrecondition, false, FAILED, "the chat template cannot render a row";
    LookAheadTwice = "B2006", FailedPrecondition, false, FAILED, "the data was already rewritten by LookAhead";
    LookAheadShortAnswers = "B2007", FailedPrecondition, false, FAILED, "the LookAhead preview covers every whole answer";
    DataCache = "B2008", FailedPrecondition, false, FAILED, "the prepared set cannot be written or read back";

    ModelNotFound = "B3001", NotFound, false, FAILED, "the base model cannot be found";
    ModelUnsupported = "B3002", FailedPrecondition, false, FAILED, "the base model's architecture is not supported";
    ModelMalformed = "B3003", FailedPrecondition, false, FAILED, "a file of the base model is malformed";
    ModelTensor = "B3004", FailedPrecondition, false, FAILED, "a tensor of the base model is missing, mis-shaped or not finite";
    ModelDownload = "B3005", Unavailable, true, RETRY, "the base model cannot be downloaded";
    Tokenizer = "B3006", FailedPrecondition, false, FAILED, "the tokenizer cannot be loaded";
    ModelMismatch = "B3007", FailedPrecondition, false, FAILED, "this worker's base model is not the run's";
    LoraTargets = "B3008", FailedPrecondition, false, FAILED, "a LoRA target module does not exist in the base model";

    VersionMismatch = "B4001", FailedPrecondition, false, FAILED, "worker and coordinator are of different versions";
    NumericsMismatch = "B4002", FailedPrecondition, false, FAILED, "this worker would compute different bits";
    StaleGeneration = "B4003", Aborted, true, RETRY, "a message belongs to another generation";
    UnknownWorker = "B4004", NotFound, true, RETRY, "the coordinator does not know this worker";
    CoordinatorUnreachable = "B4005", Unavailable, true, RETRY, "the coordinator cannot be reached";
    LeaseExpired = "B4006", Aborted, true, RETRY, "a worker fell silent or stopped moving";
    WorkerLost = "B4007", Aborted, true, RETRY, "a worker left the run";
    CollectiveFailed = "B4008", Aborted, true, RETRY, "a collective between the workers failed";
    BadFrame = "B4009", Aborted, true, RETRY, "a malformed frame arrived from another worker";
    BindFailed = "B4010", FailedPrecondition, false, FAILED, "the address cannot be listened on";
    BadMessage = "B4011", InvalidArgument, false, FAILED, "a message breaks the protocol";
    RunFull = "B4012", ResourceExhausted, true, RETRY, "the run already has all its workers";
    Unauthenticated = "B4013", Unauthenticated, false, FAILED, "the token is missing or not known";
    Forbidden = "B4014", PermissionDenied, false, FAILED, "the token's role may not do this";
    TlsRefused = "B4015", Unavailable, false, FAILED, "the TLS connection was refused";
    TooManyConnections = "B4016", ResourceExhausted, true, RETRY, "the coordinator has no room for another connection";
    DeadlineExceeded = "B4017", DeadlineExceeded, true, RETRY, "the coordinator did not answer in time";
    TooSlow = "B4018", FailedPrecondition, false, RETRY, "the worker is too slow for the others";

    StorageFailed = "B5001", Internal, true, FAILED, "the run directory cannot be written";
    CheckpointCorrupt = "B5002", DataLoss, false, FAILED, "no checkpoint verifies";
    CheckpointMismatch = "B5003", FailedPrecondition, false, FAILED, "the checkpoint belongs to another run";
    RunDirectoryInUse = "B5004", FailedPrecondition, false, FAILED, "the run directory is in use or holds another run";
    LedgerCorrupt = "B5005", DataLoss, false, FAILED, "the ledger is damaged";
    ReportUnreadable = "B5006", FailedPrecondition, false, FAILED, "the report or ledger of a run cannot be read";
    LedgerElsewhere = "B5007", FailedPrecondition, false, FAILED, "the checkpoints belong to another ledger than the run directory's";

    NonFinite = "B6001", FailedPrecondition, false, FAILED, "loss or gradient is not finite";
    StateDiverged = "B6002", Internal, false, FAILED, "workers disagree about the training state";
    OutOfMemory = "B6003", ResourceExhausted, false, FAILED, "the device is out of memory";
    Interrupted = "B6004", Aborted, true, RETRY, "the run was stopped and can be resumed";
    DeviceUnusable = "B6005", FailedPrecondition, false, FAILED, "the device cannot be used";
    DeviceFailed = "B6006", Aborted, true, RETRY, "the device failed";

    Internal = "B9001", Internal, false, FAILED, "a defect in ballast";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for ErrorCode {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|c| c.as_str() == s).ok_or(())
    }
}

/// An error that knows its place in the table. Every library error of Ballast implements it.
pub trait Coded: std::error::Error {
    /// Its stable code.
    fn code(&self) -> ErrorCode;
}

/// An error with its code, as it is shown to a user or has arrived over the wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its place in the table.
    pub code: ErrorCode,
    /// What was wrong, where, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure with this code and message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl Coded for Failure {
    fn code(&self) -> ErrorCode {
        self.code
    }
}

/// Metadata key under which the stable code travels.
const CODE_KEY: &str = "ballast-error-code";

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut status = Status::new(failure.code.grpc(), failure.message);
        if let Ok(value) = failure.code.as_str().parse() {
            status.metadata_mut().insert(CODE_KEY, value);
        }
        status
    }
}

impl Failure {
    /// The code that the sender put into a status; `None` when Ballast did not make it.
    #[must_use]
    pub fn sent_code(status: &Status) -> Option<ErrorCode> {
        status.metadata().get(CODE_KEY)?.to_str().ok()?.parse().ok()
    }
}

impl From<Status> for Failure {
    /// Keeps the sender's code; a status that Ballast did not make is a connection fault or a protocol fault.
    fn from(status: Status) -> Self {
        let code = Self::sent_code(&status).unwrap_or(match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
                ErrorCode::CoordinatorUnreachable
            }
            _ => ErrorCode::BadMessage,
        });
        Self::new(code, status.message().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_unique_and_parse_back() {
        let codes: HashSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(codes.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
    }

    #[test]
    fn a_failure_survives_the_wire() {
        let sent = Failure::new(ErrorCode::StaleGeneration, "generation 1.2 is over");
        let status = Status::from(sent.clone());
        assert_eq!(status.code(), Code::Aborted);
        let received = Failure::from(status);
        assert_eq!((received.code, received.message), (sent.code, sent.message));
    }
}
