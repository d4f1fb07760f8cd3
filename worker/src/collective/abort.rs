//! Ending a collective from another thread.

use super::CollectiveError;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ends the collectives of one generation at once: a call blocked in one returns with
/// [`CollectiveError::Aborted`]. Made before the ring, so that its handshake can be aborted too. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct AbortHandle(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    reason: Option<String>,
    sockets: Vec<TcpStream>,
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
        state.reason.get_or_insert_with(|| reason.to_owned());
        state.sever();
    }

    /// The error of an aborted generation.
    pub(super) fn check(&self) -> Result<(), CollectiveError> {
        match &self.state().reason {
            Some(reason) => Err(CollectiveError::Aborted(reason.clone())),
            None => Ok(()),
        }
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

    /// Closes the watched sockets, so that the neighbours learn of a failure at once.
    pub(super) fn sever(&self) {
        self.state().sever();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
