//! The thread that makes steps durable: ledger first, then metrics. It blocks on the disk so that the event loop does not.

use super::{
    control::Command,
    directory::now_ms,
    metrics::{MetricsFile, StepMetrics},
};
use crate::{
    checkpoint::{RunRecord, Store},
    ledger::{Ledger, StepRecord},
    membership::{Event, SlowWorker},
};
use ballast_proto::{ErrorCode, Failure, fault};
use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
};
use tokio::sync::mpsc as async_mpsc;

/// Something to be made durable.
pub(super) enum Entry {
    /// A step.
    Step(StepRecord, StepMetrics),
    /// Steps after this one are void.
    Rewind {
        /// Newest step that still counts.
        to: u64,
    },
    /// A worker held the others up.
    Slow(SlowWorker),
    /// `run.json`, with the arithmetic of the first worker.
    Run(RunRecord),
}

/// The running thread.
pub(super) struct Recorder {
    entries: mpsc::Sender<Entry>,
    thread: JoinHandle<Ledger>,
}

impl Recorder {
    /// Starts it. Every durable step comes back as [`Event::Committed`], the first failure as [`Event::Failed`].
    pub(super) fn start(
        ledger: Ledger,
        metrics: MetricsFile,
        store: Arc<dyn Store>,
        events: async_mpsc::Sender<Command>,
    ) -> Result<Self, Failure> {
        let (entries, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || record(ledger, metrics, &*store, &queue, &events))
            .map_err(|e| Failure::new(ErrorCode::Internal, format!("cannot start a thread: {e}")))?;
        Ok(Self { entries, thread })
    }

    /// Queues an entry. After a failure there is nobody to take it, and the failure has been told.
    pub(super) fn write(&self, entry: Entry) {
        let _ = self.entries.send(entry);
    }

    /// Waits until everything queued is written, and hands the ledger back.
    pub(super) fn finish(self) -> Result<Ledger, Failure> {
        drop(self.entries);
        self.thread.join().map_err(|_| Failure::new(ErrorCode::Internal, "the recorder thread has crashed"))
    }
}

fn record(
    mut ledger: Ledger,
    mut metrics: MetricsFile,
    store: &dyn Store,
    queue: &mpsc::Receiver<Entry>,
    events: &async_mpsc::Sender<Command>,
) -> Ledger {
    for entry in queue {
        let event = match entry {
            Entry::Step(step, line) => {
                let number = step.step;
                fault::point("commit", number);
                let written = ledger.commit(step).map_err(Failure::from).and_then(|()| metrics.append(&line));
                fault::point("committed", number);
                written.map(|()| Some(Event::Committed { step: number }))
            }
            Entry::Rewind { to } => {
                let written = ledger.rewind(to).map_err(Failure::from).and_then(|()| metrics.rewind(to));
                written.map(|()| Some(Event::Rewound { to }))
            }
            Entry::Slow(slow) => ledger.slow(now_ms(), slow).map_err(Failure::from).map(|()| None),
            Entry::Run(run) => run.write(store).map(|()| None),
        };
        let (event, failed) = match event {
            Ok(event) => (event, false),
            Err(failure) => (Some(Event::Failed(failure)), true),
        };
        // A closed channel means that the run is over and nobody listens any more.
        if let Some(event) = event
            && events.blocking_send(Command::Event(event)).is_err()
        {
            break;
        }
        if failed {
            break;
        }
    }
    ledger
}
