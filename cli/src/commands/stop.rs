//! `ballast stop`

use super::admin;
use crate::args::StopArgs;
use crate::screen::Screen;
use ballast_proto::exit;
use ballast_proto::v1::StopRequest;

pub(super) fn run(args: &StopArgs, screen: &Screen) -> anyhow::Result<u8> {
    let answer = admin::ask(&args.connection, async |mut admin| admin.stop(StopRequest {}).await)?;
    screen.note(if answer.requested {
        "the run will stop after a checkpoint; `ballast status` tells how far it is"
    } else {
        "the run is stopping already"
    });
    Ok(exit::DONE)
}
