//! Every limit of the coordinator's port, in one place. `docs/security.md` lists them.

use std::time::Duration;

/// How much of the coordinator its callers may take. Tests set shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections whose callers have shown a token (or any call, where there are no tokens).
    pub connections: usize,
    /// Connections whose callers have not yet; one more is closed without a word.
    pub strangers: usize,
    /// Time from connecting to the first admitted call, TLS included.
    pub admission: Duration,
    /// Calls refused on one connection before it is closed.
    pub refusals: u32,
}

impl Limits {
    /// For a run of this many workers: each may connect anew while its old connection is not yet known to be dead, all may come
    /// at once, and some people may watch.
    #[must_use]
    pub fn of(workers: u32) -> Self {
        Self {
            connections: 2 * workers as usize + 64,
            strangers: workers as usize + 128,
            admission: Duration::from_secs(10),
            refusals: 16,
        }
    }
}

/// Largest message that the server takes: a piece of a checkpoint and some more.
pub(super) const MESSAGE: usize = 8 << 20;
/// Largest set of headers of a call.
pub(super) const HEADERS: u32 = 16 << 10;
/// Calls in progress on one connection; a worker has a handful.
pub(super) const CALLS: u32 = 32;
/// Time between HTTP/2 pings, and for their answer: finds connections whose other end is gone without a word.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(10);
/// Time for the answer to a short question, or for a stream to begin.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// Time until a download begins: the checkpoint is read and verified first.
pub(super) const DOWNLOAD: Duration = Duration::from_secs(600);
/// Time for a whole upload of a training state.
pub(super) const UPLOAD: Duration = Duration::from_secs(3600);
