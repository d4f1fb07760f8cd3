//! Blocking reads with a deadline, and connections whose other end may be out of reach.

use super::{AbortHandle, CollectiveError};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A blocked read wakes this often to look at its deadline.
const SLICE: Duration = Duration::from_millis(100);
/// Unanswered questions after which a machine is out of reach.
const PROBES: u32 = 3;

/// Why a read did not get what it wanted.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// The deadline passed.
    TimedOut,
    /// Another thread gave the generation up.
    Aborted(CollectiveError),
    /// The connection failed, or ended within a frame.
    Io(io::Error),
}

/// Makes a connection ready for frames: small ones leave at once, and blocked reads look up now and then.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(SLICE))
}

/// Has the connection fail when the other end's machine does not answer for about `lease`, and no sooner than five seconds:
/// else an end that only reads would never notice that the way is broken. A process that is slow, or stopped, has a machine
/// that answers.
pub(super) fn probe(socket: &TcpStream, lease: Duration) -> io::Result<()> {
    // The system counts in seconds: a lease of five is two of silence and three probes.
    let interval = (lease / (PROBES + 2)).max(Duration::from_secs(1));
    let probing = TcpKeepalive::new().with_time(2 * interval).with_interval(interval).with_retries(PROBES);
    SockRef::from(socket).set_tcp_keepalive(&probing)
}

/// Fills `buffer` from a prepared socket.
pub(super) fn read_exact(
    mut socket: &TcpStream,
    mut buffer: &mut [u8],
    deadline: Instant,
    abort: &AbortHandle,
) -> Result<(), ReadFault> {
    while !buffer.is_empty() {
        let read = match socket.read(buffer) {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection was closed")),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => Ok(0),
            other => other,
        };
        let read = match read {
            Ok(read) => read,
            Err(e) => {
                abort.check().map_err(ReadFault::Aborted)?;
                return Err(ReadFault::Io(e));
            }
        };
        buffer = buffer.split_at_mut(read).1;
        if read == 0 {
            // Not every socket is in reach of an abort yet.
            abort.check().map_err(ReadFault::Aborted)?;
        }
        if !buffer.is_empty() && Instant::now() >= deadline {
            return Err(ReadFault::TimedOut);
        }
    }
    Ok(())
}
