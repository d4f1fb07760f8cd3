//! `ballast config`

use crate::args::{ConfigCommand, TrainArgs};
use crate::{screen, setup};
use ballast_coordinator::config;
use ballast_proto::exit;

pub(super) fn run(command: &ConfigCommand) -> anyhow::Result<u8> {
    match command {
        ConfigCommand::Show(args) => show(args)?,
        ConfigCommand::Schema => screen::print(&format!("{:#}\n", config::schema()))?,
    }
    Ok(exit::DONE)
}

fn show(args: &TrainArgs) -> anyhow::Result<()> {
    let resolved = setup::resolve(&args.file, args.insecure)?;
    screen::print(&resolved.to_toml())
}
