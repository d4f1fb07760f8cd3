//! The thread that sends frames, so that sending and receiving overlap.

use super::AbortHandle;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long the last frames may take to leave when a ring is dropped in peace.
const FLUSH: Duration = Duration::from_secs(5);

/// Sends frames in order, on a thread of its own.
///
/// The queue is unbounded, which cannot deadlock, and yet never holds more than one vector: in a ring, every frame sent
/// after the first round answers one that was received.
pub(super) struct FrameWriter {
    queue: Option<Sender<Vec<u8>>>,
    spent: Receiver<Vec<u8>>,
    failure: Arc<OnceLock<io::Error>>,
    finished: Receiver<()>,
    abort: AbortHandle,
}

impl FrameWriter {
    /// Takes the connection to the successor over. A failed write severs the ring's connections.
    pub(super) fn spawn(mut socket: TcpStream, abort: AbortHandle) -> io::Result<Self> {
        let (queue, frames) = channel::<Vec<u8>>();
        let (spend, spent) = channel();
        let (finish, finished) = channel();
        let failure = Arc::new(OnceLock::new());
        let (failed, severed) = (Arc::clone(&failure), abort.clone());
        std::thread::Builder::new().name("ring-writer".into()).spawn(move || {
            for frame in frames {
                if let Err(error) = socket.write_all(&frame) {
                    let _ = failed.set(error);
                    severed.sever();
                    break;
                }
                // The reader may be gone; then nobody needs the buffer.
                let _ = spend.send(frame);
            }
            let _ = socket.shutdown(Shutdown::Write);
            let _ = finish.send(());
        })?;
        Ok(Self { queue: Some(queue), spent, failure, finished, abort })
    }

    /// A frame of `len` bytes of unspecified content, in memory that an earlier frame no longer needs.
    pub(super) fn frame(&self, len: usize) -> Vec<u8> {
        let mut frame = self.spent.try_recv().unwrap_or_default();
        frame.resize(len, 0);
        frame
    }

    /// Puts a frame in the queue. After a failure it is dropped: the reader's side finds the failure.
    pub(super) fn send(&self, frame: Vec<u8>) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(frame);
        }
    }

    /// Why a write failed, if one did.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.failure.get().map(|e| io::Error::new(e.kind(), e.to_string()))
    }
}

impl Drop for FrameWriter {
    /// Lets queued frames leave: the successor may still wait for the last ones. When the ring was severed, the thread
    /// has ended or ends with its next write.
    fn drop(&mut self) {
        self.queue = None;
        let _ = self.finished.recv_timeout(FLUSH);
        self.abort.sever();
    }
}
