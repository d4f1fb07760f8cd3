//! Errors as a user sees them: code, message, where to read more, exit code.

use crate::args::{self, LogFormat};
use crate::screen::Screen;
use ballast_coordinator::data::source::contains_panic;
use ballast_proto::{Coded, ErrorCode, Failure, exit};
use serde_json::json;
use std::process::ExitCode;

/// An error of a library, with its code, as the commands pass it up.
pub(crate) fn coded(error: impl Coded) -> anyhow::Error {
    Failure::new(error.code(), error.to_string()).into()
}

/// What a command led to, told to the user; the exit code of the process.
pub(crate) fn exit_code(result: anyhow::Result<u8>, screen: &Screen) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_broken_pipe(&error) => ExitCode::from(exit::DONE),
        Err(error) => {
            let failure = failure(&error);
            tell(&failure, screen);
            ExitCode::from(failure.code.exit_code())
        }
    }
}

/// What clap has to say: help and version are no failure, all else is bad usage.
pub(crate) fn usage(message: &clap::Error) -> ExitCode {
    if !message.use_stderr() {
        // If standard output is closed there is nobody left to tell.
        let _ = message.print();
        return ExitCode::from(exit::DONE);
    }
    let text = message.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // Tips and usage, which follow an empty line, are for people.
    let (what, advice) = text.split_once("\n\n").unwrap_or((text, ""));
    let failure = Failure::new(ErrorCode::Usage, what.split_whitespace().collect::<Vec<_>>().join(" "));
    let screen = Screen::without_log(args::format_asked_for(std::env::args_os()));
    tell(&failure, &screen);
    screen.note(&format!("\n{}", advice.trim_end()));
    ExitCode::from(failure.code.exit_code())
}

/// Makes a panic, which is a defect, look like the error that it is, unless it is caught and told as another.
pub(crate) fn explain_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if contains_panic() {
            return;
        }
        let code = ErrorCode::Internal;
        eprintln!("error[{code}]: {}: {panic}\n  help: ballast explain {code}", code.title());
    }));
}

/// Prints a failure.
pub(crate) fn tell(failure: &Failure, screen: &Screen) {
    match screen.format() {
        LogFormat::Json => screen.json(&json!({
            "event": "error",
            "code": failure.code.as_str(),
            "message": failure.message,
            "retryable": failure.code.retryable(),
            "exit_code": failure.code.exit_code(),
            "help": format!("ballast explain {}", failure.code),
        })),
        LogFormat::Text => {
            let label = console::style(format!("error[{}]", failure.code)).for_stderr().red().bold();
            screen.line(&format!("{label}: {}", failure.message));
            screen.line(&format!("  help: ballast explain {}", failure.code));
        }
    }
}

/// The failure within an error. One without a code is a defect: every library error has one.
fn failure(error: &anyhow::Error) -> Failure {
    error.downcast_ref::<Failure>().cloned().unwrap_or_else(|| Failure::new(ErrorCode::Internal, format!("{error:#}")))
}

/// Whoever read our output has seen enough (`ballast config show run.toml | head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
