//! Ending a collective from another thread.

use super::CollectiveError;
use std::fmt;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ends the collectives of one generation at once: a call blocked in one returns with
/// [`CollectiveError::Aborted`]. Made before the ring, so that its handshake can be aborted too. Clones share one state.
#[derive(Clone, Default)]
pub struct AbortHandle(Arc<Mutex<State>>);

/// Told the reason of the abort.
type OnAbort = Box<dyn FnOnce(&str) + Send>;

#[derive(Default)]
struct State {
    reason: Option<String>,
    sockets: Vec<TcpStream>,
    /// What else ends when the generation does.
    others: Vec<OnAbort>,
}

impl AbortHandle {
    /// A handle that was not used yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the generation up. The first reason stays.
    pub fn abort(&self, reason: &str) {
        let mut state = self.state();
        let reason = state.reason.get_or_insert_with(|| reason.to_owned()).clone();
        state.sever();
        state.others.drain(..).for_each(|end| end(&reason));
    }

    /// The error of an aborted generation.
    pub(super) fn check(&self) -> Result<(), CollectiveError> {
        self.reason().map_or(Ok(()), Err)
    }

    /// Why the generation was aborted, if it was.
    #[must_use]
    pub fn reason(&self) -> Option<CollectiveError> {
        self.state().reason.clone().map(CollectiveError::Aborted)
    }

    /// Puts a socket in reach of [`AbortHandle::abort`].
    pub(super) fn watch(&self, socket: &TcpStream) -> std::io::Result<()> {
        let mut state = self.state();
        state.sockets.push(socket.try_clone()?);
        if state.reason.is_some() {
            state.sever();
        }
        Ok(())
    }

    /// Calls `end` with the reason of the abort, or at once if that is past. It must be quick and may not come back here.
    pub fn on_abort(&self, end: impl FnOnce(&str) + Send + 'static) {
        let mut state = self.state();
        match &state.reason {
            Some(reason) => end(reason),
            None => state.others.push(Box::new(end)),
        }
    }

    /// Closes the watched sockets, so that the neighbours learn of a failure at once.
    pub(super) fn sever(&self) {
        self.state().sever();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("reason", &self.state().reason).finish_non_exhaustive()
    }
}

impl State {
    fn sever(&mut self) {
        for socket in self.sockets.drain(..) {
            // A socket that is closed already is what was wanted.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn whatever_is_in_reach_learns_the_first_reason_before_and_after() {
        let (abort, (heard, reasons)) = (AbortHandle::new(), mpsc::channel());
        let hear = |heard: &mpsc::Sender<String>| {
            let heard = heard.clone();
            move |reason: &str| heard.send(reason.to_owned()).unwrap()
        };
        abort.on_abort(hear(&heard));
        assert!(reasons.try_recv().is_err());
        abort.abort("a worker is gone");
        abort.abort("another reason");
        abort.on_abort(hear(&heard));
        assert_eq!(reasons.try_iter().collect::<Vec<_>>(), ["a worker is gone"; 2]);
    }
}
