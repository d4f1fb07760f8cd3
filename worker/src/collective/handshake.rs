//! Finding both neighbours. A rank connects to its successor and awaits its predecessor, at the same time.
//!
//! Whoever is neither (a stranger, a worker of another run or of another generation) is refused and does no harm: the
//! search goes on until the right neighbour is found or the time is over.

use super::frame::{FrameError, HEADER_LEN, Header, Kind};
use super::ring::Place;
use super::socket::{self, ReadFault};
use super::{AbortHandle, CollectiveError, Peer};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Pause between looks at the listener and between attempts to connect.
const POLL: Duration = Duration::from_millis(2);
/// Longest pause between attempts to connect.
const RETRY: Duration = Duration::from_millis(250);
/// Longest single attempt to connect: an unreachable host is tried again.
const ATTEMPT: Duration = Duration::from_secs(2);
/// A connection that has not introduced itself by then is dropped.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// Connections that may be introducing themselves at one time; the oldest gives way.
const CANDIDATES: usize = 64;

/// The connections from the predecessor and to the successor.
pub(super) struct Neighbours {
    pub(super) incoming: TcpStream,
    pub(super) outgoing: TcpStream,
}

/// The time that finding neighbours may take.
#[derive(Clone, Copy)]
struct Limit {
    waited: Duration,
    deadline: Instant,
}

/// Connects this place of the ring with both neighbours.
pub(super) fn connect(
    place: &Place,
    listener: &TcpListener,
    timeout: Duration,
    abort: &AbortHandle,
) -> Result<Neighbours, CollectiveError> {
    let limit = Limit { waited: timeout, deadline: Instant::now() + timeout };
    listener.set_nonblocking(true).map_err(|e| CollectiveError::Setup(format!("ring listener: {e}")))?;
    std::thread::scope(|scope| {
        let outgoing = scope.spawn(|| reach_next(place, limit, abort));
        let incoming = await_previous(place, listener, limit, abort);
        let outgoing =
            outgoing.join().unwrap_or_else(|_| Err(CollectiveError::Setup("the connecting thread panicked".into())));
        Ok(Neighbours { incoming: incoming?, outgoing: outgoing? })
    })
}

impl Limit {
    fn passed(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn error(&self, peer: Peer, last: String) -> CollectiveError {
        CollectiveError::NotConnected { peer, waited: self.waited, last }
    }
}

// ---- to the successor ------------------------------------------------------------------------------------------------

fn reach_next(place: &Place, limit: Limit, abort: &AbortHandle) -> Result<TcpStream, CollectiveError> {
    let mut pause = POLL;
    loop {
        abort.check()?;
        let last = match introduce(place, limit, abort)? {
            Ok(socket) => return Ok(socket),
            Err(reason) => reason,
        };
        if limit.passed() {
            return Err(limit.error(place.next(), last));
        }
        std::thread::sleep(pause.min(limit.remaining()));
        pause = (2 * pause).min(RETRY);
    }
}

/// One attempt. The inner error is a reason to try again.
fn introduce(place: &Place, limit: Limit, abort: &AbortHandle) -> Result<Result<TcpStream, String>, CollectiveError> {
    let attempt = || -> std::io::Result<TcpStream> {
        let mut socket = open(&place.next().address, limit.remaining().clamp(POLL, ATTEMPT))?;
        socket::prepare(&socket)?;
        socket.write_all(&place.greeting(Kind::Hello, place.rank).sealed())?;
        Ok(socket)
    };
    let socket = match attempt() {
        Ok(socket) => socket,
        Err(e) => return Ok(Err(e.to_string())),
    };
    let mut reply = [0; HEADER_LEN];
    match socket::read_exact(&socket, &mut reply, limit.deadline, abort) {
        Ok(()) => Ok(judge_reply(place, &reply).map(|()| socket)),
        Err(ReadFault::Aborted(error)) => Err(error),
        Err(ReadFault::TimedOut) => {
            abort.check()?;
            Ok(Err("it accepts the connection but does not answer".into()))
        }
        Err(ReadFault::Io(e)) => Ok(Err(e.to_string())),
    }
}

fn open(address: &str, timeout: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Whether the answer to a greeting comes from the successor and welcomes us.
fn judge_reply(place: &Place, reply: &[u8; HEADER_LEN]) -> Result<(), String> {
    let header = checked(reply).map_err(|e| e.to_string())?;
    if header.kind == Kind::Refused {
        return Err(format!(
            "refused by rank {} of {} in generation {}.{}",
            header.offset, header.total, header.epoch, header.number
        ));
    }
    header.expect(&place.greeting(Kind::Welcome, place.next().rank)).map_err(|e| e.to_string())
}

// ---- from the predecessor --------------------------------------------------------------------------------------------

/// A connection that is introducing itself.
struct Candidate {
    socket: TcpStream,
    greeting: [u8; HEADER_LEN],
    filled: usize,
    since: Instant,
}

/// How far a candidate is.
enum Introduction {
    Unfinished,
    Failed(String),
    Complete,
}

fn await_previous(
    place: &Place,
    listener: &TcpListener,
    limit: Limit,
    abort: &AbortHandle,
) -> Result<TcpStream, CollectiveError> {
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut last = String::from("nobody connected");
    loop {
        abort.check()?;
        match listener.accept() {
            Ok((socket, _)) => {
                if candidates.len() >= CANDIDATES {
                    candidates.remove(0);
                }
                candidates.extend(Candidate::new(socket));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(POLL),
            Err(e) => {
                last = e.to_string();
                std::thread::sleep(POLL);
            }
        }
        if let Some(socket) = examine(place, &mut candidates, &mut last) {
            return Ok(socket);
        }
        if limit.passed() {
            return Err(limit.error(place.previous(), last));
        }
    }
}

/// Hears all candidates; drops those that are wrong and returns the predecessor when it is among them.
fn examine(place: &Place, candidates: &mut Vec<Candidate>, last: &mut String) -> Option<TcpStream> {
    let mut i = 0;
    while let Some(candidate) = candidates.get_mut(i) {
        let verdict = match candidate.hear() {
            Introduction::Unfinished => {
                i += 1;
                continue;
            }
            Introduction::Failed(reason) => Err(reason),
            Introduction::Complete => judge_greeting(place, &candidate.greeting).map_err(|e| e.to_string()),
        };
        let candidate = candidates.swap_remove(i);
        match verdict.and_then(|()| welcome(place, candidate.socket.try_clone())) {
            Ok(socket) => return Some(socket),
            Err(reason) => {
                refuse(place, candidate.socket);
                *last = reason;
            }
        }
    }
    None
}

impl Candidate {
    fn new(socket: TcpStream) -> Option<Self> {
        socket.set_nonblocking(true).ok()?;
        Some(Self { socket, greeting: [0; HEADER_LEN], filled: 0, since: Instant::now() })
    }

    fn hear(&mut self) -> Introduction {
        match self.socket.read(&mut self.greeting[self.filled..]) {
            Ok(0) => Introduction::Failed("the connection was closed".into()),
            Ok(read) => {
                self.filled += read;
                if self.filled == HEADER_LEN { Introduction::Complete } else { Introduction::Unfinished }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                if self.since.elapsed() < INTRODUCTION {
                    Introduction::Unfinished
                } else {
                    Introduction::Failed("a connection did not introduce itself".into())
                }
            }
            Err(e) => Introduction::Failed(e.to_string()),
        }
    }
}

/// Whether a greeting comes from the predecessor, of this run and generation.
fn judge_greeting(place: &Place, greeting: &[u8; HEADER_LEN]) -> Result<(), FrameError> {
    checked(greeting)?.expect(&place.greeting(Kind::Hello, place.previous().rank))
}

fn welcome(place: &Place, socket: std::io::Result<TcpStream>) -> Result<TcpStream, String> {
    let send = |mut socket: TcpStream| {
        socket::prepare(&socket)?;
        socket.write_all(&place.greeting(Kind::Welcome, place.rank).sealed())?;
        Ok(socket)
    };
    socket.and_then(send).map_err(|e: std::io::Error| e.to_string())
}

/// Tells a wrong candidate who listens here, if it still cares.
fn refuse(place: &Place, mut socket: TcpStream) {
    let _ = socket.write_all(&place.greeting(Kind::Refused, place.rank).sealed());
}

fn checked(frame: &[u8; HEADER_LEN]) -> Result<Header, FrameError> {
    let (header, checksum) = Header::decode(frame)?;
    super::frame::verify(frame, checksum)?;
    Ok(header)
}
