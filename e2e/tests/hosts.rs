//! A coordinator and two workers on three hosts, which are network namespaces.

use anyhow::{Context, Result, ensure};
use ballast_e2e::tiny::play;
use std::path::Path;
use std::process::Command;

const PORT: u16 = 7070;

/// Three namespaces, removed when dropped.
struct Hosts {
    prefix: String,
}

impl Hosts {
    /// `None`, with a message, where namespaces cannot be made.
    fn up() -> Option<Self> {
        let hosts = Self { prefix: format!("ballast-{}", std::process::id()) };
        match hosts.script("up") {
            Ok(output) if output.status.success() => Some(hosts),
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                eprintln!("skipped: no network namespaces here (they need the ip tool and root): {why}");
                None
            }
            Err(error) => {
                eprintln!("skipped: no network namespaces here: {error}");
                None
            }
        }
    }

    fn script(&self, action: &str) -> std::io::Result<std::process::Output> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("netns/hosts.sh");
        Command::new("sh").arg(script).arg(action).arg(&self.prefix).output()
    }

    /// The same command, on a host.
    fn on(&self, host: u8, command: &Command) -> Command {
        let mut wrapped = Command::new("ip");
        wrapped.args(["netns", "exec", &format!("{}-{host}", self.prefix)]).arg(command.get_program());
        wrapped.args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        wrapped
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = self.script("down");
    }
}

#[test]
fn three_hosts_give_the_same_adapter_as_one() -> Result<()> {
    play(|scene| {
        let Some(hosts) = Hosts::up() else { return Ok(()) };
        let on_one = scene.train("one", &["cluster.workers=2"])?;

        let bind = format!("cluster.bind=10.98.7.1:{PORT}");
        let refused = scene.run("coordinator", "three", &["cluster.workers=2", &bind]);
        let mut refused = scene.start("coordinator without --insecure", &mut hosts.on(1, &refused))?;
        ensure!(refused.exit_code()? == 64, "{}", refused.printed());
        ensure!(refused.printed().contains("B1007"), "{}", refused.printed());

        let mut coordinator = scene.run("coordinator", "three", &["cluster.workers=2", &bind]);
        coordinator.arg("--insecure");
        let mut coordinator = scene.start("coordinator", &mut hosts.on(1, &coordinator))?;
        let mut workers = Vec::new();
        for host in [2, 3] {
            let mut worker = scene.ballast("worker");
            worker.args(["--coordinator", &format!("http://10.98.7.1:{PORT}"), "--insecure"]);
            // One advertises what it binds, the other binds everything and names itself.
            if host == 2 {
                worker.args(["--ring-bind", "10.98.7.2:0"]);
            } else {
                worker.args(["--ring-bind", "0.0.0.0:0", "--ring-advertise", "10.98.7.3"]);
            }
            workers.push(scene.start(&format!("worker on host {host}"), &mut hosts.on(host, &worker))?);
        }
        for worker in &mut workers {
            ensure!(worker.exit_code()? == 0, "{}", worker.printed());
        }
        ensure!(coordinator.exit_code()? == 0, "{}", coordinator.printed());
        let on_three = scene.adapter_sha256("three").context("the run on three hosts")?;
        ensure!(on_three == on_one, "{on_three} is not {on_one}");
        Ok(())
    })
}
