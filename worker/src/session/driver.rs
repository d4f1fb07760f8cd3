//! The session's loop: carries events to the [`Conversation`] and its actions out.

use super::compute::{Computer, Control, Order};
use super::connect::{Coordinator, Joined};
use super::conversation::{Action, Conversation, Ending, Event};
use super::evaluation::evaluate_all;
use super::generation::Errands;
use super::load::Loader;
use super::upload::upload_all;
use crate::progress::Progress;
use ballast_proto::v1::worker_message::Message as Say;
use ballast_proto::v1::{CoordinatorMessage, GenerationFormed, Hello, Phase, RunSpec, WorkerMessage};
use ballast_proto::{CommunicatorSecret, ErrorCode, Failure};
use std::future::Future;
use std::net::TcpListener;
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
/// How long the compute thread may take to part from the other ranks and let the device go; NCCL gives up before.
const PARTING: Duration = Duration::from_secs(20);
/// Heartbeats when the run names no interval.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// One worker's membership.
struct Driver {
    coordinator: Coordinator,
    worker_id: u64,
    said: UnboundedSender<WorkerMessage>,
    orders: Sender<Order>,
    events: UnboundedSender<Event>,
    /// Heartbeats, uploads, errands: cancelled when the session ends.
    tasks: JoinSet<()>,
    /// The current generation's handles.
    running: Option<Running>,
    progress: Progress,
    /// Resolves when the compute thread has ended.
    computed: oneshot::Receiver<()>,
}

struct Running {
    control: Control,
    /// Where the secret goes by which the ranks meet; dropped with the generation, for which the compute thread may be
    /// waiting.
    communicator: Sender<CommunicatorSecret>,
    errands: tokio::task::AbortHandle,
}

/// Holds the conversation from the first word to the last.
pub(super) async fn converse(
    joined: Joined,
    listener: TcpListener,
    load: Loader,
    terminated: impl Future<Output = &'static str>,
) -> Result<u8, Failure> {
    let (said, words) = mpsc::unbounded_channel();
    let (events, mut happened) = mpsc::unbounded_channel();
    let hello = Hello { worker_id: joined.worker_id };
    say(&said, Say::Hello(hello));
    let mut membership = joined.coordinator.membership();
    let mut inbound = membership.session(UnboundedReceiverStream::new(words)).await?.into_inner();

    let mut driver = Driver::start(joined, listener, load, said, events)?;
    let mut conversation = Conversation::default();
    tokio::pin!(terminated);
    loop {
        let event = tokio::select! {
            // What the coordinator says comes first: it explains most of what else happens.
            biased;
            message = inbound.message() => heard(message),
            Some(event) = happened.recv() => event,
            signal = &mut terminated => Event::Terminated(signal),
        };
        let lost = matches!(event, Event::Lost(_));
        for action in conversation.on(event) {
            if let Some(ending) = driver.carry_out(action) {
                let computing = driver.leave().await;
                if !lost {
                    farewell(&mut inbound).await;
                }
                if let Ending::Exit { .. } = ending {
                    computing.end().await;
                }
                return conclude(ending);
            }
        }
    }
}

impl Driver {
    /// Starts the compute thread, heartbeats and uploads.
    fn start(
        joined: Joined,
        listener: TcpListener,
        load: Loader,
        said: UnboundedSender<WorkerMessage>,
        events: UnboundedSender<Event>,
    ) -> Result<Self, Failure> {
        let Joined { coordinator, worker_id, run } = joined;
        let progress = Progress::new();
        let (orders, ordered) = std::sync::mpsc::channel();
        let (snapshots, taken) = mpsc::channel(1);
        let (computing, computed) = oneshot::channel::<()>();
        let tasks = JoinSet::new();
        let mut driver =
            Self { coordinator, worker_id, said, orders, events, tasks, running: None, progress, computed };
        let progress = driver.progress.clone();
        driver.tasks.spawn(heartbeats(driver.said.clone(), progress.clone(), interval(&run)));
        driver.errand(upload_all(driver.coordinator.clone(), worker_id, taken));
        let computer = Computer { run, listener, progress, events: driver.events.clone(), snapshots };
        std::thread::Builder::new()
            .name("compute".into())
            .spawn(move || {
                // Dropped at the thread's end, however it ends.
                let _computing = computing;
                computer.work(load, &ordered);
            })
            .map_err(|e| Failure::new(ErrorCode::Internal, format!("the compute thread cannot start: {e}")))?;
        Ok(driver)
    }

    /// Ends whatever keeps the session or the channel of orders open: the compute thread ends with its next order.
    async fn leave(mut self) -> Computing {
        self.tasks.shutdown().await;
        Computing { progress: self.progress, ended: self.computed }
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
        let (rank, world_size, step) = (formed.rank, formed.ring_addresses.len(), formed.start_step);
        tracing::info!(%generation, rank, world_size, start_step = step, "generation formed");
        let control = Control::new();
        let errands = Errands { coordinator: self.coordinator.clone(), worker_id: self.worker_id, generation };
        let (communicator, id) = std::sync::mpsc::channel();
        let errands = self.errand(errands.run(formed, control.clone(), id, self.orders.clone()));
        self.running = Some(Running { control, communicator, errands });
    }

    /// Runs something beside the conversation; its failure is the worker's.
    fn errand(
        &mut self,
        errand: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) -> tokio::task::AbortHandle {
        let events = self.events.clone();
        self.tasks.spawn(async move {
            if let Err(failure) = errand.await {
                tokio::time::sleep(ERRAND_GRACE).await;
                // Nobody listens when the session is over.
                let _ = events.send(Event::Failed(failure));
            }
        })
    }
}

/// The compute thread, when the session is over.
struct Computing {
    progress: Progress,
    ended: oneshot::Receiver<()>,
}

impl Computing {
    /// Lets the thread part from the other ranks, unless it is deep in work that nobody wants any more and that nothing
    /// interrupts.
    async fn end(self) {
        match self.progress.heartbeat().phase() {
            Phase::Loading | Phase::Compute | Phase::Apply | Phase::Evaluate => return,
            Phase::Unspecified | Phase::Waiting | Phase::Reduce => {}
        }
        if tokio::time::timeout(PARTING, self.ended).await.is_err() {
            tracing::warn!(seconds = PARTING.as_secs(), "the compute thread did not end in time and is left behind");
        }
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

fn conclude(ending: Ending) -> Result<u8, Failure> {
    match ending {
        Ending::Exit { code, reason } => {
            tracing::info!(exit_code = code, reason, "session over");
            Ok(code)
        }
        Ending::Failed(failure) => Err(failure),
    }
}
