//! The coordinator as a process: tonic services as thin shells around an event loop that owns the membership.
//!
//! ```text
//! session ─┐                          ┌─> sessions (messages to workers)
//! shards  ─┤ Command   ┌───────────┐  ├─> recorder (ledger, metrics, run.json)
//! transfer─┼──────────>│  control  │──┤
//! evaluate─┤           └───────────┘  ├─> view (what the streams follow)
//! admin   ─┘            membership::step └─> display (events and progress)
//! ```
//!
//! [`serve`] puts the services on one port: [`incoming`] lets connections in, and [`guard`] decides about every call by the
//! table in [`methods`].

mod admin;
mod blueprint;
mod control;
mod directory;
mod display;
mod evaluate;
mod finish;
mod guard;
mod incoming;
mod limits;
mod link;
mod listen;
mod methods;
mod metrics;
mod progress;
mod recorder;
mod records;
mod relay;
mod saving;
mod serve;
mod session;
mod shards;
mod steps;
mod transfer;
mod untrusted;
mod visitor;

pub use blueprint::{Decode, ModelInfo, RunData, spec};
pub use finish::RunOutcome;
pub use incoming::Listener;
pub use limits::Limits;
pub use metrics::StepMetrics;
pub use progress::{Progress, RunEvent, RunPhase};

use crate::{
    checkpoint::{self, sha256_hex},
    config::{OnNonFinite, OnSlowWorker, Reduction, Resolved},
    evaluation::Queue,
    membership::{Event, Settings, SlowPolicy, State},
    report,
    security::Security,
    site::Site,
};
use ballast_proto::{
    ErrorCode, Failure, exit,
    v1::{Generation, RunSpec},
};
use blueprint::Blueprint;
use control::{Command, Control, View};
use directory::RunDirectory;
use display::Display;
use finish::Conclusion;
use link::Link;
use metrics::MetricsFile;
use recorder::Recorder;
use serve::Services;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// Commands on their way to the loop.
const COMMANDS: usize = 256;
/// Events that a slow listener may lag behind.
const EVENTS: usize = 4096;

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// The resolved run file.
    pub resolved: Arc<Resolved>,
    /// The base model.
    pub model: ModelInfo,
    /// The prepared set.
    pub data: RunData,
    /// SHA-256 (hex) of this binary, for the record.
    pub binary_sha256: String,
    /// Its certificate, and the tokens of its callers.
    pub security: Security,
    /// What its callers may take of it.
    pub limits: Limits,
}

/// What starting led to.
#[derive(Debug)]
pub enum Started {
    /// The coordinator runs.
    Running(Coordinator),
    /// The run directory holds this run, and it is complete.
    Finished(RunOutcome),
}

/// A running coordinator.
#[derive(Debug)]
pub struct Coordinator {
    address: SocketAddr,
    spec: Box<RunSpec>,
    commands: mpsc::Sender<Command>,
    events: broadcast::Receiver<RunEvent>,
    progress: watch::Receiver<Progress>,
    outcome: JoinHandle<RunOutcome>,
}

impl Coordinator {
    /// Opens the run directory, listens, and begins to admit workers.
    ///
    /// # Errors
    /// Everything that can be known before a worker joins: the run directory is in use or of another run, no checkpoint
    /// verifies, the address cannot be listened on, the plan contradicts the run file.
    pub async fn start(options: StartOptions) -> Result<Started, Failure> {
        let started_at = Instant::now();
        let StartOptions { resolved, model, data, binary_sha256, security, limits } = options;
        let blueprint = Arc::new(Blueprint::new(&resolved, model, data, binary_sha256)?);
        let listener = listen::listen(&blueprint.run.cluster, &blueprint.run.security).await?;
        Self::open(blueprint, Site::default(), Entrance { listener, security, limits }, started_at).await
    }

    /// The same on another machine, whose listener is there already.
    ///
    /// # Errors
    /// As [`Coordinator::start`].
    #[cfg(feature = "simulation")]
    pub async fn start_at(site: Site, listener: impl Listener, options: StartOptions) -> Result<Started, Failure> {
        let StartOptions { resolved, model, data, binary_sha256, security, limits } = options;
        let blueprint = Arc::new(Blueprint::new(&resolved, model, data, binary_sha256)?);
        Self::open(blueprint, site, Entrance { listener, security, limits }, Instant::now()).await
    }

    async fn open(
        blueprint: Arc<Blueprint>,
        site: Site,
        entrance: Entrance<impl Listener>,
        started_at: Instant,
    ) -> Result<Started, Failure> {
        let opening = (Arc::clone(&blueprint), site.clone());
        match site.blocking.run(move || open(&opening.0, &opening.1)).await?? {
            Opened::Finished(outcome) => Ok(Started::Finished(outcome)),
            Opened::Taken { directory, epoch } => {
                Self::serve(blueprint, site, *directory, epoch, entrance, started_at).await.map(Started::Running)
            }
        }
    }

    async fn serve(
        blueprint: Arc<Blueprint>,
        site: Site,
        directory: RunDirectory,
        epoch: u64,
        entrance: Entrance<impl Listener>,
        started_at: Instant,
    ) -> Result<Self, Failure> {
        let Entrance { listener, security, limits } = entrance;
        let address = listener
            .local_addr()
            .map_err(|e| Failure::new(ErrorCode::BindFailed, format!("the address that was bound: {e}")))?;
        let queue = Queue::new(blueprint.tasks());
        let state = State::new(settings(&blueprint, &directory, epoch, queue.progress().1 > 0));
        let (events_sender, events) = broadcast::channel(EVENTS);
        let (progress_sender, progress) = watch::channel(Progress {
            step: state.committed(),
            start_step: state.committed(),
            total_steps: blueprint.total_steps,
            workers_wanted: blueprint.run.cluster.workers as usize,
            checkpoint: state.checkpoint(),
            evaluation: queue.progress(),
            ..Progress::default()
        });
        let display = Display::new(events_sender, progress_sender);
        display.emit(RunEvent::Listening { address: address.to_string(), tls: security.tls.is_some() });
        blueprint.warnings.iter().chain(&directory.warnings).for_each(|warning| display.warn(warning.clone()));

        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (view, viewer) = watch::channel(View::of(&state));
        let RunDirectory { path, files, store, ledger, record, checkpoint, lock, .. } = directory;
        let metrics::Opened { file: metrics, earlier, warning } =
            MetricsFile::open(Arc::clone(&site.disk), &path, ledger.head())?;
        let hashes = ledger.hashes()?;
        let newest = checkpoint.as_ref().map(|(step, _)| *step);
        warning.into_iter().for_each(|warning| display.warn(warning));
        let recorder = Recorder::start(ledger, metrics, Arc::clone(&store), site.blocking.clone(), commands.clone());
        let control = Control {
            state,
            site: site.clone(),
            blueprint: Arc::clone(&blueprint),
            record,
            recorder,
            queue,
            view,
            display,
            sessions: BTreeMap::new(),
            waiting: Vec::new(),
            hashes,
            checkpoint,
            in_flight: BTreeMap::new(),
            metrics: earlier,
            last_step_at: started_at,
            started_at,
        };
        let link = Link { commands: commands.clone(), view: viewer };
        let shutdown = CancellationToken::new();
        let services = Services {
            link,
            blueprint: Arc::clone(&blueprint),
            store: Arc::clone(&store),
            blocking: site.blocking.clone(),
            checkpoint: newest,
            epoch,
            progress: progress.clone(),
            security,
            limits,
        };
        let server = tokio::spawn(services.serve(listener, shutdown.clone()));
        let spec = Box::new(blueprint.spec(epoch));
        let outcome = tokio::spawn(async move {
            let grace = Duration::from_millis(blueprint.run.cluster.lease_ms);
            let ended = control.run(inbox).await;
            shutdown.cancel();
            // Connections that stay open must not keep the run from ending.
            if timeout(grace, server).await.is_err() {
                tracing::warn!("connections were still open at the end");
            }
            let conclusion = Conclusion {
                blueprint,
                store,
                files,
                run_directory: path,
                total_seconds: started_at.elapsed().as_secs_f64(),
                site,
                ended,
            };
            let outcome = conclusion.write().await;
            drop(lock);
            outcome
        });
        Ok(Self { address, spec, commands, events, progress, outcome })
    }

    /// The address that workers reach.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What every worker is told.
    #[must_use]
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// What happens from now on; nothing is missed that happened since the start, unless it is very much.
    pub fn events(&mut self) -> broadcast::Receiver<RunEvent> {
        let fresh = self.events.resubscribe();
        std::mem::replace(&mut self.events, fresh)
    }

    /// The run at a glance.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// A handle that can stop the run while someone else waits for it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper { commands: self.commands.clone() }
    }

    /// Waits for the end of the run: adapter and report are written by then.
    pub async fn wait(self) -> RunOutcome {
        let Self { outcome, commands, .. } = self;
        let outcome = outcome.await;
        drop(commands);
        outcome.unwrap_or_else(|e| failed(Failure::new(ErrorCode::Internal, e.to_string())))
    }
}

/// Stops a run.
#[derive(Clone, Debug)]
pub struct Stopper {
    commands: mpsc::Sender<Command>,
}

impl Stopper {
    /// Asks for a stop after a checkpoint; asking again stops at once. After the end it does nothing.
    pub async fn request_stop(&self, reason: impl Into<String>) {
        let _ = self.commands.send(Command::Event(Event::StopRequested { reason: reason.into() })).await;
    }

    /// Ends the run with a failure that only the caller knows of, such as the death of a worker process.
    pub async fn fail(&self, failure: Failure) {
        let _ = self.commands.send(Command::Event(Event::Failed(failure))).await;
    }
}

/// SHA-256 (hex) of the running binary.
///
/// # Errors
/// When it cannot be read.
pub fn binary_sha256() -> std::io::Result<String> {
    Ok(sha256_hex(&std::fs::read(std::env::current_exe()?)?))
}

fn failed(failure: Failure) -> RunOutcome {
    RunOutcome {
        exit_code: failure.code.exit_code(),
        reason: failure.message.clone(),
        failure: Some(failure),
        adapter: None,
        report: None,
        checkpoint: None,
    }
}

/// Where callers come in, and what they meet there.
struct Entrance<L> {
    listener: L,
    security: Security,
    limits: Limits,
}

/// A run directory, opened.
enum Opened {
    Taken { directory: Box<RunDirectory>, epoch: u64 },
    Finished(RunOutcome),
}

fn open(blueprint: &Blueprint, site: &Site) -> Result<Opened, Failure> {
    let mut directory = RunDirectory::open(site, blueprint)?;
    if let Some(finished) = directory.finished() {
        let adapter = finished.adapter.map(|a| directory.path.join(a.path));
        let reason = format!(
            "run {:?} in {} is already complete after {} steps: choose another run.dir, or raise train.max_steps",
            finished.run,
            directory.path.display(),
            finished.steps
        );
        return Ok(Opened::Finished(RunOutcome {
            exit_code: exit::DONE,
            reason,
            failure: None,
            adapter,
            report: Some(directory.path.join(report::REPORT)),
            checkpoint: directory.checkpoint.map(|(_, checkpoint)| checkpoint::locate(&*directory.store, &checkpoint)),
        }));
    }
    let exact = blueprint.run.train.reduction == Reduction::Exact;
    let recipe = if exact { directory.record.recipe(blueprint.steps_matter()) } else { String::new() };
    let epoch = directory.take(&recipe, blueprint.data.samples.len() as u64, site.now_ms())?;
    Ok(Opened::Taken { directory: Box::new(directory), epoch })
}

fn settings(blueprint: &Blueprint, directory: &RunDirectory, epoch: u64, evaluate: bool) -> Settings {
    let cluster = &blueprint.run.cluster;
    let head = directory.ledger.step(directory.ledger.head());
    let recorded = head.map(|step| Generation::new(step.generation.0, step.generation.1));
    Settings {
        epoch,
        last_generation: directory.ledger.last_generation(),
        recorded_generation: recorded.unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        workers: cluster.workers as usize,
        min_workers: cluster.min_workers as usize,
        gather_ms: cluster.gather_ms,
        model_sha256: blueprint.model.sha256.clone(),
        numerics: directory.record.numerics.clone().map(Into::into),
        head: directory.ledger.head(),
        checkpoint: directory.checkpoint_step(),
        total_steps: blueprint.total_steps,
        skipped: directory.ledger.steps().filter(|step| step.skipped.is_some()).map(|step| step.step).collect(),
        max_skipped: (blueprint.run.train.on_nonfinite == OnNonFinite::Skip)
            .then_some(blueprint.run.train.max_skipped.into()),
        slow: SlowPolicy {
            factor: cluster.slow_factor,
            steps: cluster.slow_steps as usize,
            drain: cluster.on_slow_worker == OnSlowWorker::Drain,
        },
        collective: blueprint.collective(),
        prefetch_steps: cluster.prefetch_steps.into(),
        evaluate,
        timeouts: blueprint.timeouts(),
    }
}

#[cfg(test)]
mod tests;
