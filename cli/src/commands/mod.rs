//! One module a command.

mod admin;
mod audit;
mod certs;
mod compare;
mod config;
mod coordinator;
mod doctor;
mod estimate;
mod explain;
mod prepare;
mod status;
mod stop;
mod train;
mod worker;

use crate::args::Command;
use crate::screen::Screen;

/// Carries out a command; returns the exit code of the process.
pub(crate) fn run(command: Command, screen: &Screen) -> anyhow::Result<u8> {
    match command {
        Command::Train(args) => train::run(&args, screen),
        Command::Coordinator(args) => coordinator::run(&args, screen),
        Command::Worker(args) => worker::run(args),
        Command::Status(args) => status::run(&args),
        Command::Stop(args) => stop::run(&args, screen),
        Command::Certs(args) => certs::run(&args),
        Command::Prepare(args) => prepare::run(&args, screen),
        Command::Estimate(args) => estimate::run(&args, screen),
        Command::Config(command) => config::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Explain(args) => explain::run(&args),
    }
}
