//! A run over hosts: the coordinator on the first, a worker on each of the others.

use super::{Host, Hosts, say};
use crate::process::{Process, until};
use crate::tiny::Scene;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::time::Duration;

const PORT: u16 = 7070;
/// The coordinator's host.
pub const COORDINATOR: Host = 1;

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Generations that there were.
    pub generations: u64,
    /// Steps that were trained twice.
    pub redone: u64,
    /// Seconds that faults cost, by `ballast audit`.
    pub lost_seconds: f64,
    /// Longest time from one step to the next that was recorded.
    pub pause: Duration,
}

/// Processes of one run, by their hosts.
pub struct NetworkRun<'a> {
    scene: &'a Scene,
    dir: String,
    processes: BTreeMap<Host, Process>,
}

impl<'a> NetworkRun<'a> {
    /// Starts a coordinator and workers on hosts 2 to `workers + 1`, each with the fault that is listed for its host
    /// (`ballast_proto::fault`).
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn start(
        scene: &'a Scene,
        hosts: &Hosts,
        dir: &str,
        workers: u8,
        settings: &[&str],
        faults: &[(Host, &str)],
    ) -> Result<Self> {
        let fault = |host: Host| faults.iter().find(|(at, _)| *at == host).map_or("", |(_, fault)| *fault);
        let address = format!("{}:{PORT}", Hosts::address(COORDINATOR));
        let own = [format!("cluster.bind={address}"), format!("cluster.workers={workers}")];
        let settings: Vec<&str> = own.iter().map(String::as_str).chain(settings.iter().copied()).collect();
        let mut coordinator = scene.run("coordinator", dir, &settings);
        coordinator.arg("--insecure").env("BALLAST_FAULT", fault(COORDINATOR));
        let mut processes = BTreeMap::new();
        let coordinator = scene.start("coordinator", &mut hosts.on(COORDINATOR, &coordinator))?;
        processes.insert(COORDINATOR, coordinator);
        for host in (COORDINATOR + 1..).take(workers.into()) {
            let name = format!("host-{host}");
            let mut worker = scene.ballast("worker");
            worker.args(["--name", &name, "--coordinator", &format!("http://{address}"), "--insecure"]);
            worker.args(["--ring-bind", &format!("{}:0", Hosts::address(host))]).env("BALLAST_FAULT", fault(host));
            processes.insert(host, scene.start(&name, &mut hosts.on(host, &worker))?);
        }
        Ok(Self { scene, dir: dir.to_owned(), processes })
    }

    /// Waits until the fault of a host's process stops it, changes the world around it and lets it go on.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn when_stopped(&self, host: Host, change: impl FnOnce()) -> Result<()> {
        let process = self.process(host)?;
        until(&format!("host {host} to be stopped"), || Ok(process.is_stopped()?.then_some(())))?;
        change();
        process.signal(Signal::SIGCONT)
    }

    /// Waits for a line of a host's process, the first from the given one on that contains all of `words`; the number of the
    /// line after it.
    ///
    /// # Errors
    /// When it does not come.
    pub fn line(&self, host: Host, from: usize, words: &[&str]) -> Result<usize> {
        let wanted = |line: &str| words.iter().all(|word| line.contains(word));
        let (at, _) = self.process(host)?.line_from(from, wanted).with_context(|| format!("awaiting {words:?}"))?;
        Ok(at + 1)
    }

    /// Waits for the end; every process must end with 0, the adapter be the expected one, and the ledger prove every sample. Says
    /// what it came to.
    ///
    /// # Errors
    /// When any of it is not so.
    pub fn finish(mut self, what: &str, expected_sha256: &str) -> Result<Outcome> {
        for (host, process) in &mut self.processes {
            let code = process.exit_code()?;
            ensure!(code == 0, "host {host} ended with {code}:\n{}", process.printed());
        }
        let sha256 = self.scene.adapter_sha256(&self.dir)?;
        ensure!(sha256 == expected_sha256, "the adapter is {sha256}, not {expected_sha256}");
        let audit = self.scene.audit(&self.dir)?;
        let number =
            |key: &str| audit.pointer(key).and_then(serde_json::Value::as_f64).with_context(|| audit.to_string());
        let outcome = Outcome {
            generations: number("/changes")? as u64 + 1,
            redone: number("/verified/redone")? as u64,
            lost_seconds: number("/lost_seconds")?,
            pause: self.longest_pause()?,
        };
        let Outcome { generations, redone, lost_seconds, pause } = outcome;
        say(&format!(
            "{what}: generations {generations}, steps redone {redone}, seconds lost {lost_seconds:.2}, longest pause {:.2} s",
            pause.as_secs_f64()
        ));
        Ok(outcome)
    }

    fn longest_pause(&self) -> Result<Duration> {
        let steps = self.process(COORDINATOR)?.times(|line| line.starts_with("step "));
        Ok(steps.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default())
    }

    fn process(&self, host: Host) -> Result<&Process> {
        self.processes.get(&host).with_context(|| format!("nothing runs on host {host}"))
    }
}
