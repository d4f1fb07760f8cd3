//! The conversation with the coordinator: join, load, train generation after generation, leave.
//!
//! Data flows one way. [`connect`] joins; [`driver`] hears the coordinator and the compute thread and asks
//! [`conversation`] what to do; [`compute`] is the thread on which everything is computed, in the order of its orders;
//! [`generation`], [`upload`] and [`evaluation`] are errands that run beside it.

mod address;
mod compute;
mod connect;
mod conversation;
mod driver;
mod engine;
mod evaluation;
mod generation;
mod load;
mod transfer;
mod upload;

use crate::{Device, WorkerError};
use ballast_proto::security::{ClientSecurity, Connector};
use ballast_proto::v1::JoinRequest;
use ballast_proto::{ErrorCode, Failure, exit};
use std::future::Future;
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
        }
    }
}

/// As many threads as `cluster.threads` may ask for.
const MOST_THREADS: usize = 4096;

/// Works for a coordinator until it says goodbye; returns the exit code that the process should end with.
///
/// Blocks, and brings its own async runtime: not to be called from within one. On SIGTERM or SIGINT it says so to the
/// coordinator and leaves with [`exit::RETRY`].
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
    let load: load::Loader = Box::new(move |run, progress| load::load(run, &wishes, progress));
    let outcome = runtime.block_on(async {
        let terminated = termination().map_err(|e| internal("signals cannot be caught", &e))?;
        work(options, load, terminated).await
    });
    // The compute thread may still be deep in a step that nobody wants any more.
    runtime.shutdown_background();
    Ok(outcome?)
}

async fn work(
    options: WorkerOptions,
    load: load::Loader,
    terminated: impl Future<Output = &'static str>,
) -> Result<u8, Failure> {
    let connector = Connector::new(&options.coordinator, &options.security)?;
    let (listener, ring_address) =
        address::listen(&options.ring_bind, options.ring_advertise.as_deref(), options.insecure)?;
    let request = JoinRequest {
        version: env!("CARGO_PKG_VERSION").into(),
        display_name: options.name.unwrap_or_else(default_name),
        ring_address,
    };
    tokio::pin!(terminated);
    let joined = tokio::select! {
        joined = connect::join(&connector, request, options.connect_timeout) => joined?,
        signal = &mut terminated => {
            tracing::info!(signal, "stopped before joining");
            return Ok(exit::RETRY);
        }
    };
    tracing::info!(worker = joined.worker_id, run = joined.run.run_name, "joined");
    driver::converse(joined, listener, load, terminated).await
}

/// Host and process id.
fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "worker" } else { host.trim() };
    format!("{host}:{}", std::process::id())
}

/// Resolves when the process is asked to stop.
fn termination() -> io::Result<impl Future<Output = &'static str>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

fn internal(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(ErrorCode::Internal, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests;
