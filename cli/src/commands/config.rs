//! `ballast config show`

use crate::args::ConfigCommand;
use crate::{screen, setup};
use ballast_proto::exit;

pub(super) fn run(command: &ConfigCommand) -> anyhow::Result<u8> {
    let ConfigCommand::Show(args) = command;
    let resolved = setup::resolve(&args.file, args.insecure)?;
    screen::print(&resolved.to_toml())?;
    Ok(exit::DONE)
}
