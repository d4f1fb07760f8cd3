//! How services reach the event loop.

use super::control::{Command, View};
use crate::membership::Seat;
use ballast_proto::{ErrorCode, Failure, v1::Generation};
use tokio::sync::{mpsc, oneshot, watch};

/// A service's line to the event loop.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) view: watch::Receiver<View>,
}

impl Link {
    /// Sends a command and waits for its answer.
    pub(super) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply)).await?;
        answer.await.map_err(|_| over())
    }

    pub(super) async fn tell(&self, command: Command) -> Result<(), Failure> {
        self.commands.send(command).await.map_err(|_| over())
    }

    /// A worker's place in the generation that its message names.
    pub(super) async fn seat(
        &self,
        worker: u64,
        generation: Option<Generation>,
    ) -> Result<(Generation, Seat), Failure> {
        let seat = self.ask(|reply| Command::Seat { worker, generation, reply }).await??;
        // A seat exists only in a generation that was named.
        generation.map(|g| (g, seat)).ok_or_else(|| Failure::new(ErrorCode::StaleGeneration, "no generation was named"))
    }
}

fn over() -> Failure {
    Failure::new(ErrorCode::CoordinatorUnreachable, "the run is over and the coordinator is closing")
}

/// What ends a stream whose generation has ended.
pub(super) fn ended(generation: Generation) -> Failure {
    Failure::new(ErrorCode::StaleGeneration, format!("generation {generation} is over"))
}
