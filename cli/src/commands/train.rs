//! `ballast train`: a coordinator and its local workers on this machine.

use super::estimate;
use crate::args::TrainArgs;
use crate::progress::Presenter;
use crate::screen::Screen;
use crate::supervise::{LocalWorkers, reachable};
use crate::{setup, summary, watch};
use ballast_coordinator::security::LocalAccess;
use ballast_coordinator::server::{Coordinator, Started};
use std::net::Ipv4Addr;

pub(super) fn run(args: &TrainArgs, screen: &Screen) -> anyhow::Result<u8> {
    let resolved = setup::resolve(&args.file, args.insecure)?;
    let run = resolved.run.clone();
    screen.note(&format!("run {} in {}", run.run.name, run.run.dir.display()));
    // An address that the run file's check let pass can be read.
    let ip = run.cluster.address().map_or(Ipv4Addr::LOCALHOST.into(), |address| reachable(address).ip());
    let access = LocalAccess::of(&run.security, ip)?;
    let options = setup::start_options(resolved, screen)?;
    let architecture = options.model.architecture.clone();
    let outcome = setup::runtime()?.block_on(async {
        let coordinator = match Coordinator::start(options).await? {
            Started::Running(coordinator) => coordinator,
            Started::Finished(outcome) => return Ok(outcome),
        };
        screen.note(&estimate::headline(coordinator.spec(), &architecture));
        let logs = run.run.dir.join("logs");
        let workers = LocalWorkers::spawn(&run.cluster, coordinator.local_addr(), &access, &logs)?;
        watch::follow(coordinator, workers, Presenter::new(screen.clone(), run.observe.log_every)).await
    })?;
    summary::tell(&outcome, screen)?;
    Ok(watch::tell(&outcome, screen))
}
