//! The compute thread as the sessions see it. It outlives each of them: with it, the base model and the training state.

use super::compute::{Computer, Order};
use super::conversation::Event;
use super::load::Loader;
use crate::progress::Progress;
use ballast_proto::v1::{Phase, Ready, RunSpec};
use ballast_proto::{Blocking, ErrorCode, Failure};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long the compute thread may take to part from the other ranks and let the device go; NCCL gives up before.
const PARTING: Duration = Duration::from_secs(20);
/// Time to come back when the run names no limit.
const COMING_BACK: Duration = Duration::from_secs(60);

/// The running thread.
pub(super) struct Computing {
    /// What it trains. A coordinator that is another one's successor has the same run.
    pub(super) run: RunSpec,
    pub(super) orders: UnboundedSender<Order>,
    pub(super) events: UnboundedReceiver<Event>,
    pub(super) progress: Progress,
    /// Where what takes long beside it is done.
    pub(super) blocking: Blocking,
    /// Resolves when it has ended.
    ended: oneshot::Receiver<()>,
}

/// What is on the thread.
struct Workplace {
    computer: Computer,
    orders: UnboundedReceiver<Order>,
    /// Dropped at the thread's end, however it ends.
    alive: oneshot::Sender<()>,
}

impl Workplace {
    async fn work(self, load: Loader) {
        let Self { computer, orders, alive } = self;
        computer.work(load, orders).await;
        drop(alive);
    }
}

impl Computing {
    /// Starts the thread, which loads the base model.
    pub(super) fn start(run: RunSpec, load: Loader) -> Result<Self, Failure> {
        let (computing, workplace) = Self::with_workplace(run, Blocking::Threads);
        std::thread::Builder::new()
            .name("compute".into())
            .spawn(move || futures::executor::block_on(workplace.work(load)))
            .map_err(|e| Failure::new(ErrorCode::Internal, format!("the compute thread cannot start: {e}")))?;
        Ok(computing)
    }

    /// The same without a thread: a task beside the caller's.
    #[cfg(feature = "simulation")]
    pub(super) fn start_here(run: RunSpec, load: Loader, blocking: Blocking) -> Self {
        let (computing, workplace) = Self::with_workplace(run, blocking);
        tokio::task::spawn_local(workplace.work(load));
        computing
    }

    fn with_workplace(run: RunSpec, blocking: Blocking) -> (Self, Workplace) {
        let progress = Progress::new();
        let (orders, ordered) = unbounded_channel();
        let (events, happened) = unbounded_channel();
        let (alive, ended) = oneshot::channel();
        let computer = Computer { run: run.clone(), progress: progress.clone(), events };
        let workplace = Workplace { computer, orders: ordered, alive };
        (Self { run, orders, events: happened, progress, blocking, ended }, workplace)
    }

    /// Waits until the thread has come back from what it did for a session that is gone; what it can enter the next one with.
    ///
    /// # Errors
    /// When it does not come back, or has failed: this process is of no more use.
    pub(super) async fn come_back(&mut self) -> Result<Ready, Failure> {
        let (reply, answer) = oneshot::channel();
        let limit = self.patience();
        // A thread that has ended drops the answer's other end.
        let _ = self.orders.send(Order::Introduce(reply));
        tokio::pin!(answer);
        let mut seen = self.progress.heartbeat();
        loop {
            match timeout(limit, &mut answer).await {
                Ok(Ok(ready)) => {
                    // What happened in the generation that is gone needs no telling: the state tells it.
                    while self.events.try_recv().is_ok() {}
                    return Ok(ready);
                }
                Ok(Err(_)) => return Err(self.failure()),
                // A step that moves may take its time.
                Err(_) if self.progress.heartbeat() != seen => seen = self.progress.heartbeat(),
                Err(_) => {
                    let message = format!("the computation stood still for {} s", limit.as_secs());
                    return Err(Failure::new(ErrorCode::LeaseExpired, message));
                }
            }
        }
    }

    /// Loading takes longer than anything else may stand still.
    fn patience(&self) -> Duration {
        let timeouts = self.run.timeouts.as_ref();
        let loading = self.progress.heartbeat().phase() == Phase::Loading;
        let limit = timeouts.map(|t| Duration::from_millis(if loading { t.load_ms } else { t.progress_ms }));
        limit.filter(|limit| !limit.is_zero()).unwrap_or(COMING_BACK)
    }

    /// Why the thread has ended.
    fn failure(&mut self) -> Failure {
        while let Ok(event) = self.events.try_recv() {
            if let Event::Failed(failure) = event {
                return failure;
            }
        }
        Failure::new(ErrorCode::Internal, "the compute thread has ended without a word")
    }

    /// Lets the thread part from the other ranks and end, unless it is deep in work that nobody wants any more and that nothing
    /// interrupts.
    pub(super) async fn end(self) {
        let Self { orders, progress, ended, .. } = self;
        drop(orders);
        match progress.heartbeat().phase() {
            Phase::Loading | Phase::Compute | Phase::Apply | Phase::Evaluate => return,
            Phase::Unspecified | Phase::Waiting | Phase::Reduce => {}
        }
        if timeout(PARTING, ended).await.is_err() {
            tracing::warn!(seconds = PARTING.as_secs(), "the compute thread did not end in time and is left behind");
        }
    }
}
