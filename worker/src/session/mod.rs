//! The conversation with the coordinator: join, load, train generation after generation, leave.
//!
//! Data flows one way. [`connect`] joins; [`driver`] hears the coordinator and the compute thread and asks
//! [`conversation`] what to do; [`compute`] is the thread on which everything is computed, in the order of its orders;
//! [`generation`], [`upload`] and [`evaluation`] are errands that run beside it. When a session is lost, the compute thread
//! ([`computing`]) keeps the base model and the training state for the next one.

mod address;
mod compute;
mod computing;
mod connect;
mod conversation;
mod driver;
#[cfg_attr(not(feature = "simulation"), expect(unreachable_pub, reason = "only simulations bring an engine"))]
mod engine;
mod evaluation;
mod generation;
mod load;
mod station;
mod transfer;
mod upload;

use crate::{Device, WorkerError};
use ballast_proto::security::{ClientSecurity, Connector};
use ballast_proto::v1::{JoinRequest, RunSpec};
use ballast_proto::{ErrorCode, Failure, exit};
use computing::Computing;
use conversation::Ending;
use futures::{Stream, StreamExt};
use station::Station;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// What a worker is told on its command line; all else comes from the coordinator.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The coordinator's URL, `http://host:port` or `https://host:port`.
    pub coordinator: String,
    /// What the worker trusts, and shows of itself.
    pub security: ClientSecurity,
    /// Name for people; host and process id when not given.
    pub name: Option<String>,
    /// `host:port` on which the ring listens; port 0 takes a free one.
    pub ring_bind: String,
    /// Host, or `host:port`, under which other workers reach the ring; as bound when not given.
    pub ring_advertise: Option<String>,
    /// Where this worker has the base model, when not where the run says.
    pub model: Option<String>,
    /// What it computes on, when not what the run says.
    pub device: Option<Device>,
    /// Compute threads, when not as many as the run says; 0 for all cores.
    pub threads: Option<usize>,
    /// Let the ring listen beyond loopback: it has no TLS and no tokens.
    pub insecure: bool,
    /// How long the coordinator may be unreachable at the start.
    pub connect_timeout: Duration,
    /// How long a worker that has lost its coordinator keeps its state and tries to join again; zero: not at all.
    pub rejoin_timeout: Duration,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            coordinator: "http://127.0.0.1:7070".into(),
            security: ClientSecurity::default(),
            name: None,
            ring_bind: "127.0.0.1:0".into(),
            ring_advertise: None,
            model: None,
            device: None,
            threads: None,
            insecure: false,
            connect_timeout: Duration::from_secs(300),
            rejoin_timeout: Duration::from_secs(300),
        }
    }
}

/// As many threads as `cluster.threads` may ask for.
const MOST_THREADS: usize = 4096;

/// Works for a coordinator until it says goodbye; returns the exit code that the process should end with.
///
/// Blocks, and brings its own async runtime: not to be called from within one. On SIGTERM or SIGINT it leaves at the next step
/// boundary, its state handed over, with [`exit::RETRY`]; on a second one at once.
///
/// # Errors
/// When the ring cannot listen, the coordinator cannot be reached, refuses or vanishes, or training fails here.
pub fn run(options: WorkerOptions) -> Result<u8, WorkerError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("session")
        .enable_all()
        .build()
        .map_err(|e| WorkerError::Internal(format!("the async runtime cannot start: {e}")))?;
    let wishes = load::Wishes {
        model: options.model.clone(),
        device: options.device,
        threads: options.threads,
        insecure: options.insecure,
    };
    if let Some(threads) = wishes.threads.filter(|threads| *threads > MOST_THREADS) {
        let message = format!("--threads {threads}: at most {MOST_THREADS} are allowed, 0 for all cores");
        return Err(Failure::new(ErrorCode::RunFileBadValue, message).into());
    }
    let connector = Connector::new(&options.coordinator, &options.security)?;
    let (listener, ring_address) =
        address::listen(&options.ring_bind, options.ring_advertise.as_deref(), options.insecure)?;
    let load: load::Loader = Box::new(move |run, progress| load::load(run, &wishes, listener, progress));
    let station = Station {
        connector,
        name: options.name.clone().unwrap_or_else(default_name),
        ring_address,
        connect_timeout: options.connect_timeout,
        rejoin_timeout: options.rejoin_timeout,
    };
    let outcome = runtime.block_on(async {
        let terminated = termination().map_err(|e| internal("signals cannot be caught", &e))?;
        work(station, |run| Computing::start(run, load), terminated).await
    });
    // The compute thread may still be deep in a step that nobody wants any more.
    runtime.shutdown_background();
    Ok(outcome?)
}

/// Serves one run from a station, with the compute thread that `start` starts when it is known what is trained.
async fn work(
    station: Station,
    start: impl FnOnce(RunSpec) -> Result<Computing, Failure>,
    terminated: impl Stream<Item = &'static str>,
) -> Result<u8, Failure> {
    let Station { connector, name, ring_address, connect_timeout, rejoin_timeout } = station;
    let request = JoinRequest { version: env!("CARGO_PKG_VERSION").into(), display_name: name, ring_address };
    let mut terminated = Box::pin(terminated);
    let Some(mut joined) = join(&connector, &request, connect_timeout, false, &mut terminated).await? else {
        return Ok(exit::RETRY);
    };
    let (mut computing, mut introduced) = (start(joined.run.clone())?, None);
    loop {
        tracing::info!(worker = joined.worker_id, run = joined.run.run_name, "joined");
        let failure = match driver::converse(joined, &mut computing, introduced, &mut terminated).await? {
            Ending::Exit { code, reason } => {
                tracing::info!(exit_code = code, reason, "session over");
                computing.end().await;
                return Ok(code);
            }
            Ending::Failed(failure) => return Err(failure),
            Ending::Lost(failure) if rejoin_timeout.is_zero() => return Err(failure),
            Ending::Lost(failure) => failure,
        };
        tracing::warn!(%failure, "session lost; joining again");
        introduced = Some(computing.come_back().await?);
        joined = match join(&connector, &request, rejoin_timeout, true, &mut terminated).await {
            Ok(Some(joined)) => joined,
            Ok(None) => return Ok(exit::RETRY),
            // Why it had to join again says more than that nobody was there.
            Err(again) if again.code == ErrorCode::CoordinatorUnreachable => return Err(failure),
            Err(again) => return Err(again),
        };
        same_run(&computing.run, &joined.run)?;
    }
}

/// Joins; `None` when the process is asked to stop before.
async fn join(
    connector: &Connector,
    request: &JoinRequest,
    limit: Duration,
    again: bool,
    terminated: &mut (impl Stream<Item = &'static str> + Unpin),
) -> Result<Option<connect::Joined>, Failure> {
    tokio::select! {
        biased;
        joined = connect::join(connector, request.clone(), limit, again) => joined.map(Some),
        Some(signal) = terminated.next() => {
            tracing::info!(signal, "stopped before joining");
            Ok(None)
        }
    }
}

/// Whether what this worker holds is of any use to the run that it has joined again.
fn same_run(before: &RunSpec, now: &RunSpec) -> Result<(), Failure> {
    let of_this_start = RunSpec { run_id: before.run_id.clone(), ..now.clone() };
    if *before == of_this_start {
        return Ok(());
    }
    let message = format!("run {:?} was started again with other settings: this worker begins anew", now.run_name);
    Err(Failure::new(ErrorCode::Interrupted, message))
}

/// Host and process id.
fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "worker" } else { host.trim() };
    format!("{host}:{}", std::process::id())
}

/// Yields whenever the process is asked to stop.
fn termination() -> io::Result<impl Stream<Item = &'static str>> {
    let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(futures::stream::unfold((terminate, interrupt), |(mut terminate, mut interrupt)| async move {
        let name = tokio::select! {
            biased;
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        Some((name, (terminate, interrupt)))
    }))
}

fn internal(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(ErrorCode::Internal, format!("{what}: {error}"))
}

/// For [`crate::simulation`].
#[cfg(feature = "simulation")]
pub(crate) mod simulation {
    pub use super::engine::{Engine, Export, Meeting};
    pub use super::load::Loader;
    pub use super::station::Station;
    use super::{Computing, Failure, Stream};
    use ballast_proto::Blocking;

    /// Serves one run from a station until its coordinator says goodbye; returns the exit code of the process that it would be.
    ///
    /// # Errors
    /// When the coordinator cannot be reached, refuses or vanishes, or the engine fails.
    pub async fn work(
        station: Station,
        load: Loader,
        blocking: Blocking,
        terminated: impl Stream<Item = &'static str>,
    ) -> Result<u8, Failure> {
        super::work(station, |run| Ok(Computing::start_here(run, load, blocking)), terminated).await
    }
}

#[cfg(test)]
mod tests;
