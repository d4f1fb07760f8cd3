//! What is written where: results to standard output; progress, log lines and errors to standard error.

use crate::args::LogFormat;
use clap::CommandFactory;
use clap::error::ErrorKind;
use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Filter of log lines: `info`, or `ballast_worker=debug,warn`, as tracing-subscriber reads it.
const FILTER: &str = "BALLAST_LOG";

/// Standard error, with whatever bars stand at its foot.
#[derive(Clone, Debug)]
pub(crate) struct Screen {
    format: LogFormat,
    bars: MultiProgress,
}

impl Screen {
    /// Takes hold of standard error and of log lines, which `default_filter` selects when the environment does not.
    pub(crate) fn new(format: LogFormat, default_filter: &str) -> Result<Self, clap::Error> {
        let screen = Self::without_log(format);
        let filter = match std::env::var(FILTER) {
            Ok(text) => EnvFilter::try_new(&text).map_err(|error| {
                let message =
                    format!("{FILTER} = {text:?} is no filter of log lines ({error}); write `info` or `warn`\n");
                crate::args::Cli::command().error(ErrorKind::InvalidValue, message)
            })?,
            Err(_) => EnvFilter::new(default_filter),
        };
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(screen.clone());
        match format {
            LogFormat::Json => lines.json().init(),
            LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).init(),
        }
        Ok(screen)
    }

    /// Takes hold of standard error alone.
    pub(crate) fn without_log(format: LogFormat) -> Self {
        let target = match format {
            LogFormat::Text => ProgressDrawTarget::stderr(),
            LogFormat::Json => ProgressDrawTarget::hidden(),
        };
        Self { format, bars: MultiProgress::with_draw_target(target) }
    }

    pub(crate) fn format(&self) -> LogFormat {
        self.format
    }

    /// Whether a person watches standard error on a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.format == LogFormat::Text && io::stderr().is_terminal()
    }

    /// The bars at the foot of the terminal.
    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// A line for people, above the bars.
    pub(crate) fn line(&self, text: &str) {
        self.write(format!("{text}\n").as_bytes());
    }

    /// A line for people that programs need not see.
    pub(crate) fn note(&self, text: &str) {
        if self.format == LogFormat::Text {
            self.line(text);
        }
    }

    /// An event for programs.
    pub(crate) fn json(&self, event: &impl Serialize) {
        // Events hold only strings and numbers, which always serialize.
        if let Ok(text) = serde_json::to_string(event) {
            self.line(&text);
        }
    }

    fn write(&self, bytes: &[u8]) {
        // If standard error is closed there is nobody left to tell.
        self.bars.suspend(|| drop(io::stderr().lock().write_all(bytes)));
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Screen::write(self, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Screen {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Prints a result to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
