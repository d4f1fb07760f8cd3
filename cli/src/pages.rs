//! The error pages of `docs/errors`, built into the binary.

use ballast_proto::ErrorCode;

/// One arm for each code, so that a code without a page does not compile.
macro_rules! pages {
    ($($name:ident $code:literal)*) => {
        /// The page of a code, in Markdown.
        pub(crate) fn page(code: ErrorCode) -> &'static str {
            match code {
                $(ErrorCode::$name => include_str!(concat!("../../docs/errors/", $code, ".md")),)*
            }
        }
    };
}

pages! {
    RunFileUnreadable "B1001"
    RunFileUnknownKey "B1002"
    RunFileWrongType "B1003"
    RunFileBadValue "B1004"
    RunFileContradiction "B1005"
    RunFileMissingKey "B1006"
    InsecureBind "B1007"
    Usage "B1008"
    SecurityFile "B1009"
    DataUnreadable "B2001"
    DataBadRow "B2002"
    DataEmpty "B2003"
    DataTooLong "B2004"
    ChatTemplate "B2005"
    LookAheadTwice "B2006"
    LookAheadShortAnswers "B2007"
    DataCache "B2008"
    ModelNotFound "B3001"
    ModelUnsupported "B3002"
    ModelMalformed "B3003"
    ModelTensor "B3004"
    ModelDownload "B3005"
    Tokenizer "B3006"
    ModelMismatch "B3007"
    LoraTargets "B3008"
    VersionMismatch "B4001"
    NumericsMismatch "B4002"
    StaleGeneration "B4003"
    UnknownWorker "B4004"
    CoordinatorUnreachable "B4005"
    LeaseExpired "B4006"
    WorkerLost "B4007"
    CollectiveFailed "B4008"
    BadFrame "B4009"
    BindFailed "B4010"
    BadMessage "B4011"
    RunFull "B4012"
    Unauthenticated "B4013"
    Forbidden "B4014"
    TlsRefused "B4015"
    TooManyConnections "B4016"
    DeadlineExceeded "B4017"
    TooSlow "B4018"
    StorageFailed "B5001"
    CheckpointCorrupt "B5002"
    CheckpointMismatch "B5003"
    RunDirectoryInUse "B5004"
    LedgerCorrupt "B5005"
    ReportUnreadable "B5006"
    LedgerElsewhere "B5007"
    NonFinite "B6001"
    StateDiverged "B6002"
    OutOfMemory "B6003"
    Interrupted "B6004"
    DeviceUnusable "B6005"
    DeviceFailed "B6006"
    Internal "B9001"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn directory() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors")
    }

    #[test]
    fn every_page_is_of_a_code() {
        let files =
            std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let pages: BTreeSet<_> = files.filter(|name| name != "README.md").collect();
        let codes: BTreeSet<_> = ErrorCode::ALL.iter().map(|code| format!("{code}.md")).collect();
        assert_eq!(pages, codes);
    }

    #[test]
    fn pages_agree_with_the_table() {
        let index = std::fs::read_to_string(directory().join("README.md")).unwrap();
        for code in ErrorCode::ALL.iter().copied() {
            let text = page(code);
            assert_eq!(text.lines().next(), Some(format!("# {code}: {}", code.title()).as_str()));
            let retry = if code.retryable() { "may help" } else { "does not help" };
            let line = format!("Exit code {}; trying again unchanged {retry}.", code.exit_code());
            assert!(text.contains(&line), "{code}: {line}");
            assert!(text.contains(&format!("error[{code}]: ")), "{code} has no example of its own");
            for part in ["## Typical causes", "## What to do", "## Example"] {
                assert!(text.contains(part), "{code}: {part}");
            }
            let row = format!("| [{code}]({code}.md) | {} | {} |", code.title(), code.exit_code());
            assert!(index.contains(&row), "{row}");
        }
    }
}
