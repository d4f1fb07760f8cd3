//! `ballast coordinator`: coordinates workers that are started elsewhere.

use crate::args::TrainArgs;
use crate::failure::coded;
use crate::progress::Presenter;
use crate::screen::Screen;
use crate::supervise::LocalWorkers;
use crate::{setup, summary, watch};
use ballast_coordinator::server::{Coordinator, Started};

pub(super) fn run(args: &TrainArgs, screen: &Screen) -> anyhow::Result<u8> {
    let resolved = setup::resolve(&args.file, args.insecure)?;
    resolved.require_port().map_err(coded)?;
    let log_every = resolved.run.observe.log_every;
    screen.note(&format!("run {} in {}", resolved.run.run.name, resolved.run.run.dir.display()));
    let options = setup::start_options(resolved, screen)?;
    let outcome = setup::runtime()?.block_on(async {
        match Coordinator::start(options).await? {
            Started::Running(coordinator) => {
                let presenter = Presenter::new(screen.clone(), log_every);
                watch::follow(coordinator, LocalWorkers::none(), presenter).await
            }
            Started::Finished(outcome) => Ok(outcome),
        }
    })?;
    summary::tell(&outcome, screen)?;
    Ok(watch::tell(&outcome, screen))
}
