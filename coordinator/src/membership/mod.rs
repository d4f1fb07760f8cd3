//! Who trains: a pure state machine that decides about joins, leases, generations, commits and the end of the run.
//!
//! [`step`] takes the state, one event and the time, turns it into the next state, and returns the effects to carry out. It has
//! no clock, no I/O and no randomness, and iterates only over ordered maps, so a sequence of events always has the same
//! outcome. The shell in [`crate::server`] feeds it and carries out its effects in order. Every decision comes with a
//! reason fit for a log line. What comes from every worker all the time (heartbeats, reports, coming back) takes a time that
//! does not grow with their number.
//!
//! ```text
//!     +----------------- loss, join, leave ------------------+----------- nobody left ------------+
//!     v                                                      |                                    |
//! Gathering --enough ready, a state to start from--> Training --last step checkpointed--> Evaluating --all done--> Over
//!     |                                                 |                                    |
//!     +------------ stop, failure ----------------------+------------------------------------+-------------------> Over
//! ```
//!
//! A generation that loses a rank is aborted, and its other ranks come back with what they have applied; at a join or a
//! leave it ends at a step boundary. The next one starts from the newest state that any of them holds; only when nobody
//! holds the newest recorded step's, the ledger goes back to what there is.

use ballast_proto::Failure;

mod admission;
mod communicator;
mod ending;
mod event;
mod gathering;
mod invariants;
mod liveness;
mod member;
mod readiness;
mod roster;
mod skipping;
mod slowness;
mod state;
mod training;

pub use event::{Commit, Effect, Event, KnownStep, Level, Outcome, StepTotals};
pub use invariants::{Trace, check};
pub use slowness::{SlowPolicy, SlowWorker};
pub use state::{MemberStatus, Phase, Seat, Settings, State, WorkerId};

/// Decides what follows from `event` at `now_ms`, a clock that never runs backwards.
#[must_use]
pub fn step(state: &mut State, event: Event, now_ms: u64) -> Vec<Effect> {
    let mut effects = Vec::new();
    state.apply(event, now_ms, &mut effects);
    debug_assert_eq!(check(state), Ok(()));
    effects
}

impl State {
    fn apply(&mut self, event: Event, now: u64, out: &mut Vec<Effect>) {
        if let Some(worker) = event.worker() {
            // Messages of workers that are gone may still be under way; they decide nothing.
            if !self.members.contains_key(&worker) {
                return;
            }
            if !matches!(event, Event::Disconnected { .. }) {
                self.members.change(worker, |member| member.seen_at = now);
            }
        }
        match event {
            Event::Join(request) => self.join(request, now, out),
            Event::Connected { worker } => self.connected(worker, now, out),
            Event::Ready { worker, ready, known } => self.ready(worker, ready, &known, now, out),
            Event::Draining { worker, reason } => self.draining(worker, reason, now, out),
            Event::Heartbeat { worker, heartbeat } => self.heartbeat(worker, heartbeat, now),
            Event::CommunicatorMade { worker, id } => self.communicator_made(worker, id, now, out),
            Event::StepReported { worker, report, planned } => self.step_reported(worker, report, planned, now, out),
            Event::GenerationFailed { worker, generation, reason } => {
                self.generation_failed(worker, generation, &reason, now, out);
            }
            Event::Breach { worker, failure } => {
                let message = format!("{} broke the protocol: {}", self.label(worker), failure.message);
                self.lose(worker, Failure::new(failure.code, message), now, out);
            }
            Event::Leaving { worker, failure } => self.leaving(worker, failure, now, out),
            Event::Disconnected { worker } => self.disconnected(worker, now, out),
            Event::Committed { step } => self.step_committed(step, now, out),
            Event::Rewound { .. } => self.rewound(now, out),
            Event::CheckpointBegun { step } => drop(self.saving.insert(step)),
            Event::CheckpointSaved { step } => self.checkpoint_saved(step, now, out),
            Event::CheckpointFailed { step } => self.checkpoint_failed(step, now, out),
            Event::EvaluationFinished => self.evaluation_finished(out),
            Event::StopRequested { reason } => self.stop_requested(&reason, out),
            Event::Failed(failure) => self.fail(failure, out),
            Event::Tick => self.tick(now, out),
        }
    }
}

#[cfg(test)]
mod tests;
