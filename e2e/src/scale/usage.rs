//! What a process takes of the machine, as `/proc` tells.

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::time::{Duration, Instant};

/// File descriptors that are no connections of workers.
const OWN: u64 = 64;

/// A process at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    process: u32,
    at: Instant,
    /// CPU time since it started, in seconds.
    cpu: f64,
    /// Resident memory in bytes.
    pub(super) resident: u64,
    /// Open file descriptors,
    pub(super) descriptors: usize,
    /// and those that are sockets.
    pub(super) sockets: usize,
}

impl Usage {
    /// Takes a look.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn now(process: u32) -> Result<Self> {
        let links = fs::read_dir(format!("/proc/{process}/fd"))?.flatten().filter_map(|e| fs::read_link(e.path()).ok());
        let kinds: Vec<bool> = links.map(|link| link.to_string_lossy().starts_with("socket:")).collect();
        Ok(Self {
            process,
            cpu: cpu(process)?,
            at: Instant::now(),
            resident: resident(process)?,
            descriptors: kinds.len(),
            sockets: kinds.iter().filter(|socket| **socket).count(),
        })
    }

    /// Time since that moment.
    #[must_use]
    pub(super) fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// Cores' worth of CPU time that it has taken since.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn cores_since(&self) -> Result<f64> {
        Ok(self.cpu_since()? / self.at.elapsed().as_secs_f64())
    }

    /// Seconds of CPU time that it has taken since.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn cpu_since(&self) -> Result<f64> {
        Ok(cpu(self.process)? - self.cpu)
    }
}

/// Seconds that its threads have run. `/proc/PID/stat` counts in hundredths, which is too coarse for what is over in a few.
fn cpu(process: u32) -> Result<f64> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end while it is looked at; those of a coordinator's runtime do not.
        let Ok(statistics) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let ran = statistics.split_whitespace().next().and_then(|ran| ran.parse::<u64>().ok());
        nanoseconds += ran.context("/proc/PID/task/TID/schedstat begins with no number")?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

fn resident(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in /proc/PID/status")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")?;
    Ok(kilobytes * 1024)
}

/// Lets this process open a connection for each of so many workers.
///
/// # Errors
/// When the system does not allow so many.
pub fn room_for_connections(workers: usize) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = workers as u64 + OWN;
    ensure!(
        needed <= hard,
        "{workers} workers need {needed} file descriptors, and the hard limit is {hard}: ulimit -Hn"
    );
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
