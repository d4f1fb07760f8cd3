//! `ballast`, the one binary.
#![forbid(unsafe_code)]

mod answers;
mod args;
mod bars;
mod commands;
mod comparison;
mod connection;
mod descriptors;
mod failure;
mod pages;
mod progress;
mod report_file;
mod screen;
mod setup;
mod summary;
mod supervise;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    failure::explain_panics();
    args::parse()
        .and_then(|cli| {
            let screen = screen::Screen::new(cli.log, cli.command.default_filter())?;
            let result = commands::run(cli.command, &screen);
            Ok(failure::exit_code(result, &screen))
        })
        .unwrap_or_else(|message| failure::usage(&message))
}
