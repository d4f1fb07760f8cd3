//! Collectives between GPUs, by NCCL.
//!
//! A [`Communicator`] joins the ranks of one generation. Its reductions run on a stream of its own: behind what the
//! backend had enqueued before, by an event, and in front of what comes after because the host goes on only when it has
//! seen that they are over, that NCCL reports no failure, and that nobody has aborted. A result that a peer's death cut
//! short can so never be taken for one.
//!
//! # Who calls into NCCL
//! NCCL allows one thread at a time in a communicator, and `ncclCommAbort` frees it: a thread that was still inside
//! would go on in freed memory. So
//! - all calls are made under one lock, and none of them waits for another rank or for the device: communicators are
//!   non-blocking, launches and connections are made on NCCL's own thread;
//! - each communicator has a watchdog thread. It alone ends it (abort, or finalize and destroy), once, after it has
//!   taken it out of the lock; from then on no call finds it;
//! - everybody else who wants an end (a failed call, [`CommunicatorAbort`], the timeout, `drop`) says so and wakes the
//!   watchdog, without waiting for NCCL. The abort makes NCCL's kernels end, so that a thread which waits in the driver
//!   for the device comes back too, though it holds no lock of ours and looks at no flag.
//!
//! The owner then waits, for a limited time, until the communicator is ended and its stream is empty: the buffers are
//! its own again. Where they are not, what is left may write to them at any time: the device is condemned, and every
//! later call on the backend fails, until the process ends.

mod abort;
mod batch;
#[allow(unsafe_code)] // Calls into NCCL.
mod calls;
mod error;
mod id;
mod shared;
mod state;
mod stream;
mod watchdog;

pub use abort::CommunicatorAbort;
pub use batch::{Batch, Reduction};
pub use calls::require;
pub(super) use calls::version;
pub use error::{CommunicatorError, Member};
pub use id::CommunicatorId;

use super::CudaBackend;
use super::device::Device;
use crate::KernelError;
use calls::{Operand, Progress, Raw};
use shared::{Shared, Stopped};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use stream::{CommunicationStream, Mark};

/// How long the watchdog may take to end a communicator, and the device to be done with it.
const END_LIMIT: Duration = Duration::from_secs(10);
/// What is wrong with a device that a collective does not leave.
const STUCK: &str =
    "the device is still busy with an aborted collective, which may write to its buffers: end this process";
/// Pauses between looks at the device: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

/// One rank's part in all-reduces over all ranks of a generation.
///
/// After an error it is broken for good: every later call is [`CommunicatorError::Broken`], and the next generation
/// makes a new one. Dropped healthy it takes leave of the other ranks, for at most 15 s; else it is torn down.
#[derive(Debug)]
pub struct Communicator {
    shared: Arc<Shared>,
    stream: Arc<CommunicationStream>,
    device: Arc<Device>,
    watchdog: Option<JoinHandle<()>>,
}

impl Communicator {
    /// Joins the other ranks: waits until all have come with the same id. `timeout` is how long that may take, and each
    /// collective later. `abort` ends it at any time, also before it is made.
    ///
    /// # Errors
    /// [`CommunicatorError::Setup`] when NCCL is missing or the numbers make no sense, and any other when the ranks do
    /// not find each other.
    pub fn new(
        backend: &CudaBackend,
        id: &CommunicatorId,
        member: Member,
        timeout: Duration,
        abort: &CommunicatorAbort,
    ) -> Result<Self, CommunicatorError> {
        let (Ok(rank), Ok(world_size)) = (i32::try_from(member.rank), i32::try_from(member.world_size)) else {
            return Err(CommunicatorError::Setup(format!("{member} is beyond what nccl counts")));
        };
        if rank >= world_size {
            return Err(CommunicatorError::Setup(format!("there is no {member}: ranks count from 0")));
        }
        require().map_err(calls::setup)?;
        let mut communicator = Self::start(backend, member, timeout)?;
        abort.watch(&communicator.shared);
        match communicator.join(&id.to_bytes(), rank, world_size) {
            Ok(()) => Ok(communicator),
            Err(Stopped) => Err(communicator.give_up()),
        }
    }

    /// A communicator without NCCL's, watched.
    fn start(backend: &CudaBackend, member: Member, timeout: Duration) -> Result<Self, CommunicatorError> {
        let device = backend.memory.shared_device();
        let stream = CommunicationStream::new(Arc::clone(&device)).map_err(|source| {
            let operation = "making the communicator".to_owned();
            CommunicatorError::Device { member, operation, source }
        })?;
        let (shared, stream) = (Arc::new(Shared::new(member, timeout)), Arc::new(stream));
        let watched = (Arc::clone(&shared), Arc::clone(&stream));
        let watchdog = thread::Builder::new()
            .name("nccl watchdog".to_owned())
            .spawn(move || watchdog::watch(&watched.0, &watched.1))
            .map_err(|error| CommunicatorError::Setup(format!("no thread for the watchdog: {error}")))?;
        Ok(Self { shared, stream, device, watchdog: Some(watchdog) })
    }

    fn join(&self, id: &[u8; 128], rank: i32, world_size: i32) -> Result<(), Stopped> {
        self.shared.begin("making the communicator".to_owned())?;
        self.on_device(self.stream.bind())?;
        self.shared.install(|| Raw::begin(id, rank, world_size))?;
        self.until_done(Progress::Underway)?;
        self.shared.finish()
    }

    /// This process's position, and the ranks in all.
    #[must_use]
    pub fn member(&self) -> Member {
        self.shared.member
    }

    /// Begins reductions that will be waited for together.
    pub fn batch(&mut self) -> Batch<'_> {
        Batch::new(self)
    }

    /// One reduction, waited for: see [`Batch::enqueue`] and [`Batch::wait`].
    ///
    /// # Errors
    /// As these. After any but [`CommunicatorError::Setup`] the vector holds unspecified values.
    pub fn all_reduce(&mut self, reduction: Reduction<'_>, on_progress: impl FnMut()) -> Result<(), CommunicatorError> {
        let mut batch = self.batch();
        batch.enqueue(reduction)?;
        batch.wait(on_progress)
    }

    fn enqueue(&mut self, reduction: &Reduction<'_>) -> Result<(), CommunicatorError> {
        reduction.check()?;
        if !reduction.buffer().is_of(&self.device) {
            let detail = format!("{}: the vector belongs to another backend", self.shared.member);
            return Err(CommunicatorError::Setup(detail));
        }
        let all = || {
            self.shared.healthy()?;
            reduction.operands().try_for_each(|(operand, name)| self.enqueue_one(operand, name))
        };
        all().map_err(|Stopped| self.give_up())
    }

    fn enqueue_one(&self, operand: Operand, name: String) -> Result<(), Stopped> {
        self.shared.begin(name)?;
        self.on_device(self.stream.follow_backend())?;
        let progress = self.shared.call(|raw| raw.all_reduce(operand, self.stream.handle()))?;
        self.until_done(progress)?;
        // Only now is it on the stream, where its end can be marked.
        self.shared.enqueued(self.on_device(self.stream.mark())?);
        Ok(())
    }

    /// Waits until NCCL's thread has done what a call began.
    fn until_done(&self, mut progress: Progress) -> Result<(), Stopped> {
        let mut pauses = pauses();
        while progress == Progress::Underway {
            self.shared.pause(pauses())?;
            progress = self.shared.call(Raw::progress)?;
        }
        Ok(())
    }

    fn wait(&mut self, mut on_progress: impl FnMut()) -> Result<(), CommunicatorError> {
        let mut all = || {
            self.shared.healthy()?;
            while let Some(mark) = self.shared.oldest() {
                self.reach(&mark)?;
                self.until_done(self.shared.call(Raw::progress)?)?;
                self.shared.finish()?;
                on_progress();
            }
            Ok(())
        };
        all().map_err(|Stopped| self.give_up())
    }

    /// Waits until the stream has come to a mark.
    fn reach(&self, mark: &Mark) -> Result<(), Stopped> {
        let mut pauses = pauses();
        self.on_device(self.stream.bind())?;
        while !self.on_device(mark.is_passed())? {
            self.shared.pause(pauses())?;
        }
        Ok(())
    }

    /// A failure of the device is one of the communicator.
    fn on_device<T>(&self, result: Result<T, KernelError>) -> Result<T, Stopped> {
        result.map_err(|error| self.shared.device(error))
    }

    /// The communicator has failed: waits until it is torn down and nothing of it is on the device, and tells why.
    fn give_up(&mut self) -> CommunicatorError {
        let ended = self.shared.await_end(END_LIMIT);
        // What has not ended cannot be waited for; the device may yet tell why.
        let drained = self.drain(if ended { END_LIMIT } else { Duration::ZERO });
        let cleared =
            drained.and_then(|drained| if ended && drained { Ok(()) } else { Err(self.device.condemn(STUCK)) });
        if let Err(error) = cleared {
            self.shared.overrule(error);
        }
        self.shared.forget();
        self.shared.error()
    }

    /// Waits until the stream is empty, and tells whether it is.
    ///
    /// # Errors
    /// When the device has failed, whatever NCCL made of that.
    fn drain(&self, limit: Duration) -> Result<bool, KernelError> {
        let (end, mut pauses) = (Instant::now() + limit, pauses());
        self.stream.bind()?;
        let mark = self.stream.mark()?;
        let drained = loop {
            if mark.is_passed()? {
                break true;
            }
            if Instant::now() >= end {
                break false;
            }
            thread::sleep(pauses());
        };
        self.device.check()?;
        Ok(drained)
    }

    /// Gives up what nobody waits for.
    fn abandon(&mut self) {
        if self.shared.is_busy() {
            self.shared.abort("a reduction was enqueued and not waited for");
            let error = self.give_up();
            tracing::warn!(%error, "a communicator is given up");
        }
    }
}

/// Ever longer pauses, for looking at the device again and again.
fn pauses() -> impl FnMut() -> Duration {
    let (mut next, longest) = PAUSES;
    move || {
        let pause = next;
        next = (2 * pause).min(longest);
        pause
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.abandon();
        self.shared.close();
        if !self.shared.await_end(watchdog::LEAVE_LIMIT + END_LIMIT) {
            tracing::error!(member = %self.shared.member, "nccl does not let a communicator go; its thread is left");
        } else if self.watchdog.take().is_some_and(|watchdog| watchdog.join().is_err()) {
            tracing::error!(member = %self.shared.member, "the watchdog of a communicator panicked");
        }
    }
}
