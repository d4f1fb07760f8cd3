//! Hosts that are network namespaces of this machine, and what goes wrong between them.
//!
//! On a switch they are joined by the kernel alone. On a [`Wire`] every frame passes through this process, which can lose, delay,
//! duplicate or withhold it, by sender and receiver. Both need root and the `ip` tool; the wire also needs VXLAN.

mod frame;
mod run;
mod wire;

pub use run::{COORDINATOR, NetworkRun, Outcome};
pub use wire::{Tally, Weather, Wire};

use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// Every name of a namespace begins so; the process that made it and a number follow.
const PREFIX: &str = "ballast";
/// Where `ip netns` keeps namespaces by name.
const NAMESPACES: &str = "/run/netns";

/// Number of a host, from 1.
pub type Host = u8;

/// Hosts of one test; they and whatever still runs on them are removed when dropped.
pub struct Hosts {
    prefix: String,
    number: u8,
}

impl Hosts {
    /// Hosts on a switch. `None`, with a message, where they cannot be made.
    ///
    /// # Errors
    /// When what earlier tests left behind cannot be looked for.
    pub fn on_switch(number: u8) -> Result<Option<Self>> {
        Self::up(number, "switch", "the ip tool and root")
    }

    /// Hosts on a wire. `None`, with a message, where they cannot be made.
    ///
    /// # Errors
    /// When what earlier tests left behind cannot be looked for, or the wire does not work.
    pub fn on_wire(number: u8) -> Result<Option<(Self, Wire)>> {
        let Some(hosts) = Self::up(number, "wire", "the ip tool, root and VXLAN")? else { return Ok(None) };
        let wire = Wire::within(&Path::new(NAMESPACES).join(format!("{}-switch", hosts.prefix)), number)?;
        Ok(Some((hosts, wire)))
    }

    fn up(number: u8, kind: &str, needs: &str) -> Result<Option<Self>> {
        static MADE: AtomicU32 = AtomicU32::new(1);
        remove_orphans()?;
        let prefix = format!("{PREFIX}-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let hosts = Self { prefix, number };
        let why = match script(&["up", &hosts.prefix, &number.to_string(), kind]) {
            Ok(output) if output.status.success() => return Ok(Some(hosts)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        say(&format!("skipped: no hosts on a {kind} here, which need {needs}: {why}"));
        Ok(None)
    }

    /// Address of a host.
    #[must_use]
    pub fn address(host: Host) -> String {
        format!("10.98.7.{host}")
    }

    /// The same command, on a host.
    #[must_use]
    pub fn on(&self, host: Host, command: &Command) -> Command {
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

    /// Pulls the cable of a host on a switch, or plugs it in again.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn plug(&self, host: Host, plugged: bool) -> Result<()> {
        ensure!((1..=self.number).contains(&host), "there is no host {host}");
        let (switch, port) = (format!("{}-switch", self.prefix), format!("port{host}"));
        let state = if plugged { "up" } else { "down" };
        let output = Command::new("ip").args(["-n", &switch, "link", "set", &port, state]).output().context("ip")?;
        ensure!(output.status.success(), "{port} {state}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = script(&["down", &self.prefix]);
    }
}

/// Removes the hosts of tests that were killed before they could.
fn remove_orphans() -> Result<()> {
    let Ok(entries) = std::fs::read_dir(NAMESPACES) else { return Ok(()) };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let mut words = name.splitn(4, '-');
        let (Some(PREFIX), Some(process), Some(number)) = (words.next(), words.next(), words.next()) else { continue };
        // One that nobody has waited for yet still has an entry, but runs nothing.
        let running = || std::fs::read_link(Path::new("/proc").join(process).join("exe")).is_ok();
        if process.parse::<u32>().is_ok() && !running() {
            script(&["down", &format!("{PREFIX}-{process}-{number}")])?;
        }
    }
    Ok(())
}

fn script(arguments: &[&str]) -> std::io::Result<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("netns/hosts.sh");
    Command::new("sh").arg(script).args(arguments).output()
}

/// Tells whoever runs the tests, also of those that pass.
pub fn say(what: &str) {
    // Not `eprintln!`, which the test harness keeps to itself.
    let _ = writeln!(std::io::stderr(), "{what}");
}
