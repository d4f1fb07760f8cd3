//! Following a run to its end: its events, its local workers, and the signals of this process.

use crate::failure;
use crate::progress::Presenter;
use crate::screen::Screen;
use crate::supervise::{Ended, LocalWorkers, Next};
use ballast_coordinator::server::{Coordinator, RunEvent, RunOutcome, RunPhase};
use ballast_proto::{ErrorCode, Failure, exit};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;

/// Time that local workers have to leave after the end of the run.
const PATIENCE: Duration = Duration::from_secs(10);

/// Signals so soon after the first are the same request: `timeout` signals its child and then the child's group.
const ONE_REQUEST: Duration = Duration::from_secs(1);

/// Follows a run. The first SIGINT or SIGTERM asks for a stop after a checkpoint, a later one stops at once.
pub(crate) async fn follow(
    mut coordinator: Coordinator,
    mut workers: LocalWorkers,
    mut presenter: Presenter,
) -> Result<RunOutcome, Failure> {
    let mut signals = Signals::new()?;
    let mut events = coordinator.events();
    let (progress, stopper) = (coordinator.progress(), coordinator.stopper());
    let outcome = coordinator.wait();
    tokio::pin!(outcome);
    let (mut listening, mut asked) = (true, None::<Instant>);
    let mut dead = Vec::new();
    let mut outcome = loop {
        tokio::select! {
            event = events.recv(), if listening => match event {
                Ok(event) => presenter.show(&event, &progress.borrow()),
                Err(RecvError::Lagged(missed)) => tracing::warn!("{missed} events were not shown"),
                Err(RecvError::Closed) => listening = false,
            },
            mut ended = workers.next_ended() => {
                // Whoever leaves when the run is to end is not missed.
                let over = asked.is_some() || progress.borrow().phase == RunPhase::Over;
                let next = if over { Next::Gone } else { workers.replace(&mut ended) };
                match next {
                    Next::Gone => dead.push(ended),
                    Next::Replaced(message) => presenter.show(&RunEvent::Warning { message }, &progress.borrow()),
                    Next::Failed(failure) => {
                        stopper.fail(failure).await;
                        dead.push(ended);
                    }
                }
            }
            name = signals.next() => {
                match asked {
                    Some(first) if first.elapsed() < ONE_REQUEST => continue,
                    Some(_) => workers.kill().await,
                    None => asked = Some(Instant::now()),
                }
                stopper.request_stop(name).await;
            }
            outcome = &mut outcome => break outcome,
        }
    };
    while let Ok(event) = events.try_recv() {
        presenter.show(&event, &progress.borrow());
    }
    presenter.finish();
    dead.extend(workers.dismiss(PATIENCE).await);
    dead.retain(|worker| !worker.obeyed(outcome.exit_code));
    if let Some(cause) = outcome.failure.as_ref().and_then(|failure| nearer_cause(failure, &dead)) {
        if cause.code.exit_code() == exit::FAILED {
            outcome.exit_code = exit::FAILED;
        }
        outcome.failure = Some(cause);
    }
    Ok(outcome)
}

/// Tells a failed or stopped run; the exit code of the process. The coordinator decides whether another start is worth
/// it: without a checkpoint nothing would be resumed.
pub(crate) fn tell(outcome: &RunOutcome, screen: &Screen) -> u8 {
    if let Some(failure) = &outcome.failure {
        failure::tell(failure, screen);
        if let (exit::RETRY, Some(checkpoint)) = (outcome.exit_code, &outcome.checkpoint) {
            screen.note(&format!("  the same command goes on from {}", checkpoint.display()));
        }
    }
    outcome.exit_code
}

/// What the coordinator sees of a worker's death is an echo; the worker's own last words are the cause.
fn nearer_cause(failure: &Failure, dead: &[Ended]) -> Option<Failure> {
    let echoes = [
        ErrorCode::WorkerLost,
        ErrorCode::LeaseExpired,
        ErrorCode::CollectiveFailed,
        ErrorCode::BadFrame,
        ErrorCode::StaleGeneration,
    ];
    if echoes.contains(&failure.code) { dead.iter().find_map(Ended::failure) } else { None }
}

/// The signals that ask a run to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind, name: &str| {
            signal(kind).map_err(|e| Failure::new(ErrorCode::Internal, format!("{name} cannot be caught: {e}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt(), "SIGINT")?,
            terminate: listen(SignalKind::terminate(), "SIGTERM")?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
