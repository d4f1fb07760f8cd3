//! Local worker processes: started, watched, and never left behind.

use crate::connection::TOKEN;
use ballast_coordinator::config::{Cluster, Device};
use ballast_coordinator::security::LocalAccess;
use ballast_proto::{ErrorCode, Failure, exit};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::task::JoinSet;

/// Lines of a dead worker's log that are shown.
const TAIL_LINES: usize = 8;
/// Bytes of the log that they are looked for in.
const TAIL_BYTES: u64 = 16 << 10;

/// A process that ends sooner after its start than this was of no use.
const SHORT_LIFE: Duration = Duration::from_secs(30);
/// Processes of one worker that may be of no use in succession.
const MOST_SHORT_LIVES: u32 = 3;

/// The worker processes of `ballast train`. Dropping it kills whatever still runs.
#[derive(Debug)]
pub(crate) struct LocalWorkers {
    running: JoinSet<Ended>,
    workers: Vec<LocalWorker>,
}

/// One of them, whichever process it is.
#[derive(Debug)]
struct LocalWorker {
    command: Command,
    log: PathBuf,
    started: Instant,
    /// Processes in succession that were of no use.
    short_lives: u32,
}

/// A worker process that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    number: usize,
    status: io::Result<ExitStatus>,
    log: PathBuf,
    /// Length of the log when the process was started.
    log_start: u64,
    /// Processes of this worker, up to this one, that were of no use in succession.
    short_lives: u32,
}

/// What becomes of a worker whose process has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It was done.
    Gone,
    /// Another process has taken its place; why, in a sentence.
    Replaced(String),
    /// Another process would end like it.
    Failed(Failure),
}

impl LocalWorkers {
    /// No workers: they are started elsewhere.
    pub(crate) fn none() -> Self {
        Self { running: JoinSet::new(), workers: Vec::new() }
    }

    /// Starts the workers of the coordinator at `address`, logging into `logs`.
    pub(crate) fn spawn(
        cluster: &Cluster,
        address: SocketAddr,
        access: &LocalAccess,
        logs: &Path,
    ) -> Result<Self, Failure> {
        let binary = std::env::current_exe()
            .map_err(|e| Failure::new(ErrorCode::Internal, format!("the path of this binary is not known: {e}")))?;
        std::fs::create_dir_all(logs).map_err(|e| failed(logs, &e))?;
        let worker = |number| LocalWorker {
            command: command(&binary, cluster, address, access, number),
            log: logs.join(format!("worker-{number}.log")),
            started: Instant::now(),
            short_lives: 0,
        };
        let count = cluster.workers as usize;
        let mut all = Self { running: JoinSet::new(), workers: (0..count).map(worker).collect() };
        (0..count).try_for_each(|number| all.start(number))?;
        Ok(all)
    }

    /// Starts a process for a worker.
    fn start(&mut self, number: usize) -> Result<(), Failure> {
        let Some(worker) = self.workers.get_mut(number) else { return Ok(()) };
        let path = worker.log.clone();
        let log = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| failed(&path, &e))?;
        let log_start = log.metadata().map_err(|e| failed(&path, &e))?.len();
        worker.command.stdout(log.try_clone().map_err(|e| failed(&path, &e))?).stderr(log);
        let mut child = worker.command.spawn().map_err(|e| failed(&path, &e))?;
        worker.started = Instant::now();
        let wait = async move { Ended { number, status: child.wait().await, log: path, log_start, short_lives: 0 } };
        self.running.spawn(wait);
        Ok(())
    }

    /// Starts another process for a worker whose process was killed, or says that it is worth another start.
    pub(crate) fn replace(&mut self, ended: &mut Ended) -> Next {
        if ended.own_code() == Some(ErrorCode::TooSlow) {
            // It would not be let in again.
            return Next::Gone;
        }
        let (Some(worker), true) = (self.workers.get_mut(ended.number), ended.worth_another_start()) else {
            return ended.failure().map_or(Next::Gone, Next::Failed);
        };
        let short = worker.started.elapsed() < SHORT_LIFE;
        worker.short_lives = if short { worker.short_lives + 1 } else { 0 };
        ended.short_lives = worker.short_lives;
        let failure = ended.failure().unwrap_or_else(|| {
            Failure::new(ErrorCode::WorkerLost, format!("local worker {} left before the end", ended.number))
        });
        if worker.short_lives > MOST_SHORT_LIVES {
            return Next::Failed(failure);
        }
        let how = failure.message.lines().next().unwrap_or_default().to_owned();
        self.start(ended.number).map_or_else(Next::Failed, |()| Next::Replaced(format!("started again: {how}")))
    }

    /// The next worker that ends; never, when none runs.
    pub(crate) async fn next_ended(&mut self) -> Ended {
        loop {
            match self.running.join_next().await {
                Some(Ok(ended)) => return ended,
                // Aborted by `kill`.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until all have ended, at most this long, and then kills the rest.
    pub(crate) async fn dismiss(&mut self, patience: Duration) -> Vec<Ended> {
        let mut all = Vec::new();
        let gather = async {
            while let Some(ended) = self.running.join_next().await {
                all.extend(ended.ok());
            }
        };
        if tokio::time::timeout(patience, gather).await.is_err() {
            tracing::warn!("workers still ran at the end and are killed");
        }
        self.kill().await;
        all
    }

    /// Kills all.
    pub(crate) async fn kill(&mut self) {
        self.running.shutdown().await;
    }
}

/// How worker `number` is started. The workers share the cores of this machine when the run does not say how many threads
/// each has; on CUDA each has a device of its own.
fn command(binary: &Path, cluster: &Cluster, address: SocketAddr, access: &LocalAccess, number: usize) -> Command {
    let mut command = Command::new(binary);
    let scheme = if access.tls.is_some() { "https" } else { "http" };
    command.arg("worker").arg("--coordinator").arg(format!("{scheme}://{}", reachable(address)));
    command.arg("--name").arg(format!("local-{number}"));
    // Without this process there is no coordinator to join again.
    command.args(["--rejoin-timeout", "0"]);
    if let Some(tls) = &access.tls {
        command.arg("--ca").arg(&tls.ca);
        if let Some(name) = tls.server_name {
            command.arg("--server-name").arg(name);
        }
        if let Some((certificate, key)) = &tls.identity {
            command.arg("--certificate").arg(certificate).arg("--private-key").arg(key);
        }
    }
    // The command line is everybody's to read; the environment is its user's alone. One that was meant for this process is
    // of no use to its workers.
    match &access.token {
        Some(token) => command.env(TOKEN, token.reveal()),
        None => command.env_remove(TOKEN),
    };
    if cluster.device == Device::Cuda {
        command.arg("--device").arg(format!("cuda:{number}"));
        // They share this machine, so NCCL has no business beyond it.
        command.env("NCCL_SOCKET_IFNAME", "lo");
    }
    if cluster.threads == 0 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        command.arg("--threads").arg(share(cores, cluster.workers as usize, number).to_string());
    }
    // A group of its own: Ctrl-C on the terminal reaches the coordinator only, which stops the run in order.
    command.process_group(0).stdin(Stdio::null()).kill_on_drop(true);
    command
}

impl Ended {
    /// Whether it left as it was told: with the run's own exit code, and without a word of its own.
    pub(crate) fn obeyed(&self, exit_code: u8) -> bool {
        let code = self.status.as_ref().ok().and_then(ExitStatus::code);
        let tail = tail(&self.log, self.log_start).unwrap_or_default();
        code == Some(exit_code.into()) && !tail.iter().any(|line| own_words(line).is_some())
    }

    /// The code that its last words have.
    fn own_code(&self) -> Option<ErrorCode> {
        let tail = tail(&self.log, self.log_start).unwrap_or_default();
        tail.iter().rev().find_map(|line| own_words(line)).map(|(code, _)| code)
    }

    /// Whether another process may do better: this one was killed, or says that its failure was a passing one.
    fn worth_another_start(&self) -> bool {
        let retry = Some(exit::RETRY.into());
        self.status.as_ref().is_ok_and(|status| status.signal().is_some() || status.code() == retry)
    }

    /// Why this worker ended, if not in peace: in its own words if it left some.
    pub(crate) fn failure(&self) -> Option<Failure> {
        let how = match &self.status {
            Ok(status) if status.success() || status.code() == Some(exit::RETRY.into()) => return None,
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with exit code {code}"),
                (None, Some(signal)) => format!("was ended by signal {signal}"),
                (None, None) => "ended".to_owned(),
            },
            Err(error) => format!("cannot be watched ({error})"),
        };
        let tail = tail(&self.log, self.log_start).unwrap_or_default();
        let again = match self.short_lives {
            0 | 1 => String::new(),
            times => format!(", {times} times in succession"),
        };
        let (number, log) = (self.number, self.log.display());
        if let Some((code, words)) = tail.iter().rev().find_map(|line| own_words(line)) {
            return Some(Failure::new(code, format!("local worker {number}: {words}{again}; its log is {log}")));
        }
        let mut message = format!("local worker {number}: {how}{again}; the end of {log}:");
        for line in tail.iter().skip(tail.len().saturating_sub(TAIL_LINES)) {
            message = format!("{message}\n    | {line}");
        }
        Some(Failure::new(ErrorCode::WorkerLost, message))
    }
}

fn failed(what: &Path, error: &io::Error) -> Failure {
    Failure::new(ErrorCode::StorageFailed, format!("{}: {error}", what.display()))
}

/// Code and message of a line that a dying `ballast` wrote.
fn own_words(line: &str) -> Option<(ErrorCode, String)> {
    let (code, message) = line.strip_prefix("error[")?.split_once("]: ")?;
    Some((code.parse().ok()?, message.to_owned()))
}

/// The last lines of a file, from `start` on.
fn tail(path: &Path, start: u64) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: VecDeque<_> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    if start < length.saturating_sub(TAIL_BYTES) {
        // The first one is cut.
        lines.pop_front();
    }
    Ok(lines.into())
}

/// Threads of worker `number` out of `count` on `cores` cores: all cores, as evenly as can be, at least one each.
pub(crate) fn share(cores: usize, count: usize, number: usize) -> usize {
    (cores / count + usize::from(number < cores % count)).max(1)
}

/// Where this machine reaches a coordinator that listens on `address`.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_coordinator::security::LocalTls;
    use ballast_proto::security::Token;

    #[test]
    fn cores_are_shared_out() {
        let shares = |cores, count| (0..count).map(|n| share(cores, count, n)).collect::<Vec<_>>();
        assert_eq!(shares(2, 2), [1, 1]);
        assert_eq!(shares(8, 3), [3, 3, 2]);
        assert_eq!(shares(2, 3), [1, 1, 1]);
    }

    #[test]
    fn a_wildcard_address_is_reached_by_loopback() {
        assert_eq!(reachable("0.0.0.0:70".parse().unwrap()).to_string(), "127.0.0.1:70");
        assert_eq!(reachable("[::]:70".parse().unwrap()).to_string(), "[::1]:70");
        assert_eq!(reachable("10.0.0.1:70".parse().unwrap()).to_string(), "10.0.0.1:70");
    }

    #[test]
    fn a_token_is_never_on_a_command_line() {
        let secret = "s3cret".repeat(8);
        let tls = LocalTls { ca: "server.pem".into(), server_name: None, identity: None };
        let access = LocalAccess { tls: Some(tls), token: Token::parse(&secret).ok() };
        let address = "0.0.0.0:70".parse().unwrap();
        let command = command(Path::new("ballast"), &Cluster::default(), address, &access, 0);
        let command = command.as_std();
        let arguments: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        assert!(arguments.starts_with(&["worker", "--coordinator", "https://127.0.0.1:70"]), "{arguments:?}");
        assert!(arguments.windows(2).any(|pair| pair == ["--ca", "server.pem"]), "{arguments:?}");
        assert!(arguments.iter().all(|argument| !argument.contains("s3cret")), "{arguments:?}");
        let told = command.get_envs().find(|(name, _)| *name == TOKEN).and_then(|(_, value)| value);
        assert_eq!(told.and_then(|value| value.to_str()), Some(secret.as_str()));
    }

    #[test]
    fn a_worker_that_is_not_let_in_again_is_not_started_again() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("worker-0.log");
        let command = Command::new(directory.path().join("not there"));
        let worker = LocalWorker { command, log: log.clone(), started: Instant::now(), short_lives: 0 };
        let mut workers = LocalWorkers { running: JoinSet::new(), workers: vec![worker] };
        let mut next = |words: &str| {
            std::fs::write(&log, words).unwrap();
            let status = Ok(ExitStatus::from_raw(75 << 8));
            workers.replace(&mut Ended { number: 0, status, log: log.clone(), log_start: 0, short_lives: 0 })
        };
        assert_eq!(next("error[B4018]: worker 1 (local-0) is slow\n"), Next::Gone);
        assert!(matches!(next("error[B4007]: a worker left the run\n"), Next::Failed(_)), "it was to be started");
    }

    #[test]
    fn a_dead_worker_is_told_in_its_own_words() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("worker-1.log");
        let earlier = "error[B3001]: of an earlier run\n";
        let text = "loading\nerror[B6003]: out of memory\n  help: ballast explain B6003\n";
        std::fs::write(&log, format!("{earlier}{text}")).unwrap();
        let ended =
            |status, log_start| Ended { number: 1, status: Ok(status), log: log.clone(), log_start, short_lives: 0 };
        let failure = ended(ExitStatus::from_raw(1 << 8), earlier.len() as u64).failure().unwrap();
        assert_eq!(failure.code, ErrorCode::OutOfMemory);
        assert_eq!(failure.message, format!("local worker 1: out of memory; its log is {}", log.display()));
        std::fs::write(&log, format!("{earlier}loading\n")).unwrap();
        let silent = ended(ExitStatus::from_raw(1 << 8), earlier.len() as u64).failure().unwrap();
        assert!(silent.message.starts_with("local worker 1: ended with exit code 1; the end of "), "{silent}");
        assert!(silent.message.ends_with(":\n    | loading") && !silent.message.contains("earlier"), "{silent}");
        std::fs::write(&log, format!("{earlier}{text}")).unwrap();

        let killed = ended(ExitStatus::from_raw(9), (earlier.len() + text.len()) as u64).failure().unwrap();
        assert_eq!(killed.code, ErrorCode::WorkerLost);
        assert!(killed.message.contains("was ended by signal 9"), "{killed}");
        assert!(ended(ExitStatus::from_raw(0), 0).failure().is_none());
        let silent = ended(ExitStatus::from_raw(1 << 8), (earlier.len() + text.len()) as u64);
        assert!(silent.obeyed(1) && !silent.obeyed(75));
        assert!(!ended(ExitStatus::from_raw(1 << 8), 0).obeyed(1), "it failed by itself");
        assert!(ended(ExitStatus::from_raw(75 << 8), 0).failure().is_none());
    }
}
