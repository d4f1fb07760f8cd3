//! One connection, as the guard of the calls and the keeper of the door both know it.

use super::limits::Limits;
use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Whoever is at the other end of a connection.
pub(super) struct Visitor {
    pub(super) peer: SocketAddr,
    /// The coordinator has no room: every call is refused.
    pub(super) surplus: bool,
    since: Instant,
    admitted: AtomicBool,
    refusals: AtomicU32,
    /// Cancelled when the connection is to be closed.
    out: CancellationToken,
    /// The place among the strangers, given back with admission.
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Visitor {
    pub(super) fn new(peer: SocketAddr, surplus: bool, place: OwnedSemaphorePermit) -> Self {
        Self {
            peer,
            surplus,
            since: Instant::now(),
            admitted: AtomicBool::new(false),
            refusals: AtomicU32::new(0),
            out: CancellationToken::new(),
            place: Mutex::new(Some(place)),
        }
    }

    /// The caller has shown who it is: the connection may stay, and makes room for another stranger.
    pub(super) fn admit(&self) {
        if !self.admitted.swap(true, Ordering::Relaxed) {
            drop(self.place.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    /// A call was refused; whether it is the first one of the connection.
    pub(super) fn refuse(&self, limits: &Limits) -> bool {
        let earlier = self.refusals.fetch_add(1, Ordering::Relaxed);
        if earlier + 1 >= limits.refusals {
            self.out.cancel();
        }
        earlier == 0
    }

    /// Resolves when the connection is to be closed: after too many refused calls, or when its time for admission is over.
    pub(super) async fn unwelcome(&self, limits: Limits) {
        let late = async {
            sleep_until(self.since + limits.admission).await;
            if self.admitted.load(Ordering::Relaxed) {
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            () = self.out.cancelled() => tracing::warn!(peer = %self.peer, "closed: too many calls were refused"),
            () = late => tracing::warn!(peer = %self.peer, "closed: no admitted call in {:?}", limits.admission),
        }
    }
}
