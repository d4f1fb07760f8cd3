//! A communicator: one rank's connection to the hub, its state, and what each collective does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    net::{Ipv4Addr, Shutdown, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    abi::{Failure, Handle, failed, in_group},
    driver::Driver,
    fault::{self, Fault},
    wire::{Answer, Call, Hello, Request, read_answer},
};

/// Where a communicator is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Ready,
    Finalizing,
    Finalized,
    Failed(Failure),
    Aborted,
}

struct State {
    phase: Phase,
    /// A second handle to the connection, with which an abort breaks it off.
    breaker: Option<TcpStream>,
    /// Collectives that are queued and not done.
    outstanding: usize,
    /// Streams that collectives were queued on.
    streams: BTreeSet<usize>,
    /// A collective that a non-blocking call has begun and that is on no stream yet.
    begun: Option<(Call, Buffers, usize)>,
}

/// `ncclComm_t`.
pub(crate) struct Communicator {
    pub(crate) ranks: u32,
    pub(crate) rank: u32,
    pub(crate) device: i32,
    /// Whether calls wait for what they begin.
    pub(crate) blocking: bool,
    context: usize,
    driver: Driver,
    state: Mutex<State>,
    changed: Condvar,
    /// The connection, held for the length of an exchange.
    link: Mutex<Option<TcpStream>>,
}

/// Buffers of a collective.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffers {
    pub(crate) send: u64,
    pub(crate) send_bytes: usize,
    pub(crate) receive: u64,
    pub(crate) receive_bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Communicator {
    pub(crate) fn new(driver: Driver, hello: Hello, blocking: bool) -> Result<Self, Failure> {
        let context = driver.context().ok_or(Failure::UnhandledCudaError)?;
        let device = driver.device().map_err(|_| Failure::UnhandledCudaError)?;
        let state =
            State { phase: Phase::Starting, breaker: None, outstanding: 0, streams: BTreeSet::new(), begun: None };
        let Hello { ranks, rank, .. } = hello;
        let (state, changed, link) = (Mutex::new(state), Condvar::new(), Mutex::new(None));
        Ok(Self { ranks, rank, device, blocking, context, driver, state, changed, link })
    }

    pub(crate) fn phase(&self) -> Phase {
        lock(&self.state).phase
    }

    /// Connects and waits until all ranks have.
    pub(crate) fn start(&self, port: u16, hello: Hello) {
        let connect = || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_nodelay(true)?;
            let breaker = stream.try_clone()?;
            {
                let mut state = lock(&self.state);
                if state.phase == Phase::Aborted {
                    return Err(io::Error::from(ErrorKind::ConnectionAborted));
                }
                state.breaker = Some(breaker);
            }
            hello.write(&mut stream)?;
            let answer = read_answer(&mut stream)?;
            *lock(&self.link) = Some(stream);
            Ok(answer)
        };
        match connect() {
            Ok(Ok(_)) => self.enter(Phase::Ready),
            Ok(Err((failure, message))) => self.fail(failure, &message),
            Err(error) => self.fail(Failure::SystemError, &format!("no hub, or no place in it: {error}")),
        }
    }

    /// Moves on, unless the communicator was aborted or has failed.
    fn enter(&self, phase: Phase) {
        let mut state = lock(&self.state);
        if !matches!(state.phase, Phase::Aborted | Phase::Failed(_)) {
            state.phase = phase;
        }
        self.changed.notify_all();
    }

    fn fail(&self, failure: Failure, message: &str) {
        if self.phase() != Phase::Aborted {
            failed(failure, &format!("rank {}: {message}", self.rank));
        }
        self.enter(Phase::Failed(failure));
    }

    /// Breaks everything off. Collectives that wait end at once, later ones do not begin.
    pub(crate) fn abort(&self) {
        let mut state = lock(&self.state);
        state.phase = Phase::Aborted;
        if let Some(breaker) = state.breaker.take() {
            // It may be closed already.
            let _ = breaker.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    /// Begins a collective. With a non-blocking communicator it is not on its stream yet when the call returns, as with
    /// NCCL, whose own thread puts it there. Here the first question how it goes does: what a program enqueues
    /// without having asked comes too early every time, where NCCL would often be quick enough.
    pub(crate) fn begin(self: &Arc<Self>, call: Call, buffers: Buffers, stream: usize) -> Result<(), Failure> {
        if self.blocking || in_group() {
            return self.queue(call, buffers, stream);
        }
        self.ready()?;
        lock(&self.state).begun = Some((call, buffers, stream));
        Err(Failure::InProgress)
    }

    /// Whether a collective was begun that is on no stream yet; it is afterwards.
    pub(crate) fn settle(self: &Arc<Self>) -> bool {
        let Some((call, buffers, stream)) = lock(&self.state).begun.take() else { return false };
        let queued = match self.driver.enter(self.context) {
            Ok(()) => self.queue(call, buffers, stream),
            Err(code) => Err(failed(Failure::UnhandledCudaError, &format!("no context: CUDA error {code}"))),
        };
        if let Err(failure) = queued {
            self.enter(Phase::Failed(failure));
        }
        true
    }

    /// A communicator that can begin something.
    fn ready(&self) -> Result<(), Failure> {
        let state = lock(&self.state);
        let why = match state.phase {
            Phase::Ready if state.begun.is_none() => return Ok(()),
            Phase::Ready => "before the state of the last operation was asked for".to_owned(),
            Phase::Failed(failure) => return Err(failure),
            phase => format!("on a communicator: {phase:?}"),
        };
        Err(failed(Failure::InvalidArgument, &format!("a call {why}")))
    }

    /// Queues a collective on a stream.
    fn queue(self: &Arc<Self>, call: Call, buffers: Buffers, stream: usize) -> Result<(), Failure> {
        self.ready()?;
        {
            let mut state = lock(&self.state);
            state.outstanding += 1;
            state.streams.insert(stream);
        }
        let own = Arc::clone(self);
        let queued = self.driver.queue(stream, move || {
            own.perform(call, buffers);
            lock(&own.state).outstanding -= 1;
        });
        queued.map_err(|code| {
            lock(&self.state).outstanding -= 1;
            failed(Failure::UnhandledCudaError, &format!("a collective could not be queued: CUDA error {code}"))
        })
    }

    /// Does a collective, when its stream has come to it.
    fn perform(&self, mut call: Call, buffers: Buffers) {
        let Buffers { send, send_bytes, receive, receive_bytes } = buffers;
        for (what, address, bytes) in [("send", send, send_bytes), ("receive", receive, receive_bytes)] {
            if bytes > 0 && !self.driver.holds(address, bytes) {
                let place = format!("{bytes} bytes at {address:#x} are not within one allocation");
                self.driver.illegal_address(&format!("{what} buffer of {call:?}: {place}"));
                return;
            }
        }
        match fault::next(self.rank) {
            // SAFETY: a signal to this very process.
            Some(Fault::Die) => unsafe {
                libc::kill(libc::getpid(), libc::SIGKILL);
            },
            Some(Fault::Hang) => self.pause(None),
            Some(Fault::Stuck) => loop {
                std::thread::park();
            },
            Some(Fault::Delay(time)) => self.pause(Some(time)),
            Some(Fault::Mismatch) => call.count += 1,
            None => {}
        }
        let operand = match send_bytes {
            0 => Vec::new(),
            // SAFETY: the table holds this range, and nothing else in this stream runs.
            _ => unsafe { std::slice::from_raw_parts(pointer(send), send_bytes) }.to_vec(),
        };
        let (failure, message) = match self.exchange(&Request::Collective(call, operand)) {
            Ok(Ok(result)) if result.len() == receive_bytes => {
                // SAFETY: the table holds this range, and the vector is not part of it.
                unsafe { std::ptr::copy_nonoverlapping(result.as_ptr(), pointer(receive), receive_bytes) };
                return;
            }
            Ok(Ok(result)) => (Failure::RemoteError, format!("{} bytes came for {call:?}", result.len())),
            Ok(Err(reason)) => reason,
            Err(error) => (Failure::RemoteError, format!("the hub was lost: {error}")),
        };
        garble(receive, receive_bytes);
        self.fail(failure, &message);
    }

    /// Waits for a time, or for ever, but not longer than until an abort.
    fn pause(&self, time: Option<Duration>) {
        let end = time.map(|time| Instant::now() + time);
        let mut state = lock(&self.state);
        while state.phase != Phase::Aborted {
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks the hub and waits for its answer.
    fn exchange(&self, request: &Request) -> io::Result<Answer> {
        let mut link = lock(&self.link);
        let stream = link.as_mut().ok_or(ErrorKind::NotConnected)?;
        if !matches!(self.phase(), Phase::Ready | Phase::Finalizing) {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        request.write(stream)?;
        read_answer(stream)
    }

    /// Takes a communicator out of use; `ncclCommFinalize`. Returns what is left to do.
    pub(crate) fn begin_finalize(&self) -> Result<(), Failure> {
        self.ready()?;
        lock(&self.state).phase = Phase::Finalizing;
        Ok(())
    }

    /// Waits for the collectives that are queued, then takes leave of the hub.
    pub(crate) fn finish(&self) {
        let streams = {
            let state = lock(&self.state);
            if state.outstanding > 0 { state.streams.clone() } else { BTreeSet::new() }
        };
        for stream in streams {
            if let Err(code) = self.driver.synchronize(self.context, stream) {
                self.fail(Failure::UnhandledCudaError, &format!("finalize: CUDA error {code}"));
                return;
            }
        }
        if let Some(stream) = lock(&self.link).as_mut() {
            // If the hub has ended with its process there is nobody to take leave of.
            let _ = Request::Farewell.write(stream);
        }
        self.enter(Phase::Finalized);
    }
}

fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// Fills a receive buffer with bytes that are no result: what an aborted collective leaves behind.
fn garble(address: u64, bytes: usize) {
    if bytes == 0 {
        return;
    }
    // SAFETY: the caller checked the range against the allocation table.
    let memory = unsafe { std::slice::from_raw_parts_mut(pointer(address), bytes) };
    for (i, byte) in memory.iter_mut().enumerate() {
        *byte ^= (i as u32).wrapping_mul(0x9E37_79B1).to_le_bytes()[3] | 0x41;
    }
}

static COMMUNICATORS: Mutex<BTreeMap<Handle, Arc<Communicator>>> = Mutex::new(BTreeMap::new());

/// Communicators by handle. One that is wrong or was destroyed is an error, not a crash.
pub(crate) fn insert(communicator: Arc<Communicator>) -> Handle {
    static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
    let handle = NEXT.fetch_add(16, Ordering::Relaxed);
    lock(&COMMUNICATORS).insert(handle, communicator);
    handle
}

pub(crate) fn get(handle: Handle) -> Result<Arc<Communicator>, Failure> {
    lock(&COMMUNICATORS).get(&handle).cloned().ok_or(Failure::InvalidArgument)
}

pub(crate) fn remove(handle: Handle) -> Result<Arc<Communicator>, Failure> {
    lock(&COMMUNICATORS).remove(&handle).ok_or(Failure::InvalidArgument)
}
