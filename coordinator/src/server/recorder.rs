//! The task that makes steps durable, one after the other: ledger first, then metrics. It waits for the disk so that the event loop
//! does not.

use super::{
    control::Command,
    metrics::{MetricsFile, StepMetrics},
};
use crate::{
    checkpoint::{RunRecord, Store},
    ledger::{Ledger, StepRecord},
    membership::{Event, SlowWorker},
};
use ballast_proto::{Blocking, ErrorCode, Failure, fault};
use std::sync::Arc;
use tokio::{sync::mpsc, task::JoinHandle};

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
    Slow {
        /// When that was found, in milliseconds since 1970.
        at_ms: u64,
        /// Who, and by how much.
        slow: SlowWorker,
    },
    /// `run.json`, with the arithmetic of the first worker.
    Run(RunRecord),
}

/// What entries are written to.
struct Books {
    ledger: Ledger,
    metrics: MetricsFile,
    store: Arc<dyn Store>,
}

/// The running task.
pub(super) struct Recorder {
    entries: mpsc::UnboundedSender<Entry>,
    task: JoinHandle<Result<Ledger, Failure>>,
}

impl Recorder {
    /// Starts it. Every durable step comes back as [`Event::Committed`], the first failure as [`Event::Failed`].
    pub(super) fn start(
        ledger: Ledger,
        metrics: MetricsFile,
        store: Arc<dyn Store>,
        blocking: Blocking,
        events: mpsc::Sender<Command>,
    ) -> Self {
        let (entries, queue) = mpsc::unbounded_channel();
        let books = Books { ledger, metrics, store };
        Self { entries, task: tokio::spawn(record(books, blocking, queue, events)) }
    }

    /// Queues an entry. After a failure there is nobody to take it, and the failure has been told.
    pub(super) fn write(&self, entry: Entry) {
        let _ = self.entries.send(entry);
    }

    /// Waits until everything queued is written, and hands the ledger back.
    pub(super) async fn finish(self) -> Result<Ledger, Failure> {
        drop(self.entries);
        self.task.await.unwrap_or_else(|e| Err(Failure::new(ErrorCode::Internal, format!("the recorder: {e}"))))
    }
}

async fn record(
    mut books: Books,
    blocking: Blocking,
    mut queue: mpsc::UnboundedReceiver<Entry>,
    events: mpsc::Sender<Command>,
) -> Result<Ledger, Failure> {
    while let Some(entry) = queue.recv().await {
        let written;
        (books, written) = match blocking.run(move || books.write(entry)).await {
            Ok(done) => done,
            Err(failure) => {
                let _ = events.send(Command::Event(Event::Failed(failure.clone()))).await;
                return Err(failure);
            }
        };
        let failed = written.is_err();
        let event = written.unwrap_or_else(|failure| Some(Event::Failed(failure)));
        if let Some(event) = event {
            // When the run is over nobody listens any more; what is queued is written all the same.
            let _ = events.send(Command::Event(event)).await;
        }
        if failed {
            break;
        }
    }
    Ok(books.ledger)
}

impl Books {
    /// Makes an entry durable; what is to be told of it. Blocks.
    fn write(mut self, entry: Entry) -> (Self, Result<Option<Event>, Failure>) {
        let written = match entry {
            Entry::Step(step, line) => {
                let number = step.step;
                fault::point("commit", number);
                let written = self.ledger.commit(step).map_err(Failure::from).and_then(|()| self.metrics.append(&line));
                fault::point("committed", number);
                written.map(|()| Some(Event::Committed { step: number }))
            }
            Entry::Rewind { to } => {
                let written = self.ledger.rewind(to).map_err(Failure::from).and_then(|()| self.metrics.rewind(to));
                written.map(|()| Some(Event::Rewound { to }))
            }
            Entry::Slow { at_ms, slow } => self.ledger.slow(at_ms, slow).map_err(Failure::from).map(|()| None),
            Entry::Run(run) => run.write(&*self.store).map(|()| None),
        };
        (self, written)
    }
}
