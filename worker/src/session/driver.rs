//! One session's loop: carries events to the [`Conversation`] and its actions out.

use super::compute::{Control, Order, Training};
use super::computing::Computing;
use super::connect::{Coordinator, Joined};
use super::conversation::{Action, Conversation, Ending, Event};
use super::evaluation::evaluate_all;
use super::generation::Errands;
use super::upload::upload_all;
use crate::progress::Progress;
use ballast_proto::v1::worker_message::Message as Say;
use ballast_proto::v1::{CoordinatorMessage, GenerationFormed, Hello, Ready, RunSpec, WorkerMessage};
use ballast_proto::{CommunicatorSecret, ErrorCode, Failure};
use futures::{Stream, StreamExt};
use std::future::Future;
use std::sync::mpsc::Sender;
use std::time::Duration;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

/// How long last words may take to reach the coordinator.
const FAREWELL: Duration = Duration::from_secs(2);
/// When an errand fails, the session is often about to say why, and says it better.
const ERRAND_GRACE: Duration = Duration::from_secs(2);
/// Heartbeats when the run names no interval.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Shards held here; how far ahead they are sent is the coordinator's decision.
const PREFETCHED: usize = 4;

/// One worker's membership.
struct Driver {
    coordinator: Coordinator,
    worker_id: u64,
    run_id: String,
    said: UnboundedSender<WorkerMessage>,
    orders: UnboundedSender<Order>,
    /// What goes wrong with errands.
    events: UnboundedSender<Event>,
    snapshots: mpsc::Sender<super::compute::Snapshot>,
    /// Heartbeats, uploads, errands: cancelled when the session ends.
    tasks: JoinSet<()>,
    /// The current generation's handles.
    running: Option<Running>,
}

struct Running {
    control: Control,
    /// Where the secret goes by which the ranks meet; dropped with the generation, for which the compute thread may be
    /// waiting.
    communicator: Sender<CommunicatorSecret>,
    errands: tokio::task::AbortHandle,
}

/// Holds one conversation from the first word to the last. The compute thread is there before it, and after; where it was there for
/// another session, `introduced` is what it can enter this one with.
pub(super) async fn converse(
    joined: Joined,
    computing: &mut Computing,
    introduced: Option<Ready>,
    terminated: &mut (impl Stream<Item = &'static str> + Unpin),
) -> Result<Ending, Failure> {
    let (said, words) = mpsc::unbounded_channel();
    let (events, mut troubles) = mpsc::unbounded_channel();
    say(&said, Say::Hello(Hello { worker_id: joined.worker_id }));
    let mut membership = joined.coordinator.membership();
    let mut inbound = match membership.session(UnboundedReceiverStream::new(words)).await {
        Ok(inbound) => inbound.into_inner(),
        Err(status) => return Ok(Ending::Lost(status.into())),
    };

    let mut driver = Driver::start(joined, computing, said, events);
    let mut conversation = Conversation::default();
    let mut first = introduced.map(Event::Idle);
    loop {
        let event = match first.take() {
            Some(event) => event,
            None => tokio::select! {
                // What the coordinator says comes first: it explains most of what else happens.
                biased;
                message = inbound.message() => heard(message),
                Some(event) = computing.events.recv() => event,
                Some(event) = troubles.recv() => event,
                Some(signal) = terminated.next() => Event::Terminated(signal),
            },
        };
        let lost = matches!(event, Event::Lost(_));
        for action in conversation.on(event) {
            if let Some(ending) = driver.carry_out(action) {
                driver.leave().await;
                if !lost {
                    farewell(&mut inbound).await;
                }
                return Ok(ending);
            }
        }
    }
}

impl Driver {
    /// Starts heartbeats and uploads.
    fn start(
        joined: Joined,
        computing: &Computing,
        said: UnboundedSender<WorkerMessage>,
        events: UnboundedSender<Event>,
    ) -> Self {
        let Joined { coordinator, worker_id, run } = joined;
        // A second snapshot waits until the first has left, so that memory does.
        let (snapshots, taken) = mpsc::channel(1);
        let mut driver = Self {
            coordinator,
            worker_id,
            run_id: run.run_id.clone(),
            said,
            orders: computing.orders.clone(),
            events,
            snapshots,
            tasks: JoinSet::new(),
            running: None,
        };
        driver.tasks.spawn(heartbeats(driver.said.clone(), computing.progress.clone(), interval(&run)));
        driver.errand(upload_all(driver.coordinator.clone(), worker_id, taken, computing.blocking.clone()));
        driver
    }

    /// Ends whatever keeps the session open.
    async fn leave(mut self) {
        self.tasks.shutdown().await;
    }

    fn carry_out(&mut self, action: Action) -> Option<Ending> {
        match action {
            Action::Say(message) => say(&self.said, message),
            Action::Enter(formed) => self.enter(formed),
            Action::Abort { reason } => {
                if let Some(running) = self.running.take() {
                    running.control.abort.abort(&reason);
                    // Ends the stream of shards, for which the compute thread may be waiting.
                    running.errands.abort();
                }
            }
            Action::StopAfter(step) => {
                if let Some(running) = &self.running {
                    running.control.stop_after(step);
                }
            }
            Action::Meet(id) => {
                if let Some(running) = &self.running {
                    // The compute thread no longer waits when the generation is over.
                    let _ = running.communicator.send(id);
                }
            }
            Action::Evaluate(generation) => {
                let (coordinator, orders) = (self.coordinator.clone(), self.orders.clone());
                self.errand(evaluate_all(coordinator, self.worker_id, generation, orders));
            }
            Action::Ignore(what) => tracing::warn!("{what}"),
            Action::End(ending) => return Some(ending),
        }
        None
    }

    fn enter(&mut self, formed: GenerationFormed) {
        let Some(generation) = formed.generation else { return };
        let (rank, world_size, step) = (formed.rank, formed.world_size, formed.start_step);
        tracing::info!(%generation, rank, world_size, start_step = step, "generation formed");
        let control = Control::new();
        let (communicator, id) = std::sync::mpsc::channel();
        let (sender, state) = oneshot::channel();
        let (shards, received) = mpsc::channel(PREFETCHED);
        let training = Training {
            formed: formed.clone(),
            generation,
            run_id: self.run_id.clone(),
            state,
            snapshots: self.snapshots.clone(),
            shards: received,
            communicator: id,
            control: control.clone(),
        };
        // A compute thread that has ended has said why.
        let _ = self.orders.send(Order::Train(training));
        let errands = Errands { coordinator: self.coordinator.clone(), worker_id: self.worker_id, generation };
        let errands = self.errand(errands.run(formed, sender, shards));
        self.running = Some(Running { control, communicator, errands });
    }

    /// Runs something beside the conversation; its failure is the worker's, unless it tells of the session's end, or of a
    /// generation that is over.
    fn errand(
        &mut self,
        errand: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) -> tokio::task::AbortHandle {
        let events = self.events.clone();
        self.tasks.spawn(async move {
            if let Err(failure) = errand.await {
                if failure.code == ErrorCode::StaleGeneration {
                    tracing::debug!(%failure, "not needed any more");
                    return;
                }
                tokio::time::sleep(ERRAND_GRACE).await;
                let lost = failure.code == ErrorCode::CoordinatorUnreachable;
                // Nobody listens when the session is over.
                let _ = events.send(if lost { Event::Lost(failure) } else { Event::Failed(failure) });
            }
        })
    }
}

/// Sends heartbeats for ever. Their task shares no thread with the computation.
async fn heartbeats(said: UnboundedSender<WorkerMessage>, progress: Progress, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        say(&said, Say::Heartbeat(progress.heartbeat()));
    }
}

fn interval(run: &RunSpec) -> Duration {
    let named = run.timeouts.as_ref().map(|timeouts| Duration::from_millis(timeouts.heartbeat_interval_ms));
    named.filter(|interval| !interval.is_zero()).unwrap_or(HEARTBEAT)
}

/// A session that is gone hears nothing more, and its end arrives as an event.
fn say(said: &UnboundedSender<WorkerMessage>, message: Say) {
    let _ = said.send(WorkerMessage { message: Some(message) });
}

fn heard(message: Result<Option<CoordinatorMessage>, tonic::Status>) -> Event {
    match message {
        Ok(Some(message)) => Event::Heard(message),
        Ok(None) => {
            let message = "the coordinator closed the session without a goodbye";
            Event::Lost(Failure::new(ErrorCode::CoordinatorUnreachable, message))
        }
        Err(status) => Event::Lost(status.into()),
    }
}

/// Lets the last words leave: the coordinator closes its side when it has heard them.
async fn farewell(inbound: &mut Streaming<CoordinatorMessage>) {
    let closed = async { while let Ok(Some(_)) = inbound.message().await {} };
    let _ = tokio::time::timeout(FAREWELL, closed).await;
}
