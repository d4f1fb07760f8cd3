//! What is under way in a communicator, since when, and what went wrong first.

use super::error::{CommunicatorError, Member};
use super::stream::Mark;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often NCCL is asked for failures while something is under way.
pub(super) const POLL: Duration = Duration::from_millis(10);

/// What the watchdog has to do.
#[derive(Debug)]
pub(super) enum Duty {
    /// Ask NCCL whether all is well.
    Poll,
    /// The first operation has been under way for the whole timeout: see whether it is over and nobody has looked.
    Late { number: u64, mark: Option<Mark> },
    /// Something failed: abort.
    Abort,
    /// The owner is done: take leave.
    Close,
}

/// Something that needs the other ranks: the making of the communicator, or a collective.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) number: u64,
    pub(super) name: String,
    /// Where it ends, once it is enqueued.
    pub(super) mark: Option<Mark>,
    /// Known to be over, though its caller has not looked.
    passed: bool,
}

#[derive(Debug, Default)]
enum Failure {
    #[default]
    None,
    Untold(CommunicatorError),
    /// The text of the error that a caller got.
    Told(String),
}

/// What is known of a communicator. Time comes from outside.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) operations: VecDeque<Operation>,
    begun: u64,
    /// Since when the first operation that is not over has nothing in front of it.
    since: Option<Instant>,
    failure: Failure,
    /// The owner is done.
    pub(super) closing: bool,
    /// NCCL's communicator is no more.
    pub(super) ended: bool,
}

impl State {
    pub(super) fn failed(&self) -> bool {
        !matches!(self.failure, Failure::None)
    }

    /// The first operation that is not known to be over.
    pub(super) fn pending(&self) -> Option<&Operation> {
        self.operations.iter().find(|operation| !operation.passed)
    }

    pub(super) fn begin(&mut self, name: String, now: Instant) {
        self.begun += 1;
        self.operations.push_back(Operation { number: self.begun, name, mark: None, passed: false });
        self.since.get_or_insert(now);
    }

    /// An operation is over: the clock of the next starts.
    pub(super) fn pass(&mut self, number: u64, now: Instant) {
        if let Some(operation) = self.operations.iter_mut().find(|found| found.number == number && !found.passed) {
            operation.passed = true;
            self.since = self.pending().map(|_| now);
        }
    }

    /// Forgets what was under way: it is over, one way or another.
    pub(super) fn forget(&mut self) {
        self.operations.clear();
        self.since = None;
    }

    /// What messages name as under way.
    pub(super) fn operation(&self) -> String {
        self.pending().map_or_else(|| "the communicator".to_owned(), |first| first.name.clone())
    }

    /// Records a failure in place of an earlier one that nobody was told.
    pub(super) fn overrule(&mut self, error: CommunicatorError) {
        if !matches!(self.failure, Failure::Told(_)) {
            self.failure = Failure::Untold(error);
        }
    }

    /// Records a failure; the first one stays.
    pub(super) fn fail(&mut self, error: CommunicatorError) {
        if !self.failed() {
            self.failure = Failure::Untold(error);
        }
    }

    /// The failure: in full to the first who asks, to later ones as that of an earlier call.
    pub(super) fn tell(&mut self, member: Member) -> CommunicatorError {
        let (error, cause) = match std::mem::take(&mut self.failure) {
            Failure::Untold(error) => {
                let cause = error.to_string();
                (error, cause)
            }
            Failure::Told(cause) => (CommunicatorError::Broken { member, cause: cause.clone() }, cause),
            Failure::None => {
                let cause = "nothing is known".to_owned();
                (CommunicatorError::Broken { member, cause: cause.clone() }, cause)
            }
        };
        self.failure = Failure::Told(cause);
        error
    }

    /// What the watchdog has to do, or for how long nothing but a poll.
    pub(super) fn duty(&self, timeout: Duration, now: Instant) -> Result<Duty, Option<Duration>> {
        if self.failed() {
            return Ok(Duty::Abort);
        }
        if self.closing {
            return Ok(Duty::Close);
        }
        let Some(since) = self.since else { return Err((!self.operations.is_empty()).then_some(POLL)) };
        let left = timeout.saturating_sub(now.saturating_duration_since(since));
        match self.pending() {
            Some(first) if left.is_zero() => Ok(Duty::Late { number: first.number, mark: first.mark.clone() }),
            _ => Err(Some(left.min(POLL))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Each collective has the whole timeout from when it is first in line.
    #[test]
    fn the_clock_of_an_operation_starts_when_nothing_is_in_front_of_it() {
        let (start, mut state) = (Instant::now(), State::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(matches!(state.duty(TIMEOUT, at(99)), Err(None)), "nothing is under way");
        state.begin("first".to_owned(), at(0));
        state.begin("second".to_owned(), at(1));
        assert!(matches!(state.duty(TIMEOUT, at(9)), Err(Some(POLL))));
        assert!(matches!(state.duty(TIMEOUT, at(10)), Ok(Duty::Late { number: 1, .. })));
        state.pass(1, at(8));
        assert!(matches!(state.duty(TIMEOUT, at(17)), Err(Some(POLL))));
        assert!(matches!(state.duty(TIMEOUT, at(18)), Ok(Duty::Late { number: 2, .. })));
        state.pass(2, at(18));
        assert!(matches!(state.duty(TIMEOUT, at(99)), Err(Some(POLL))), "over, though nobody has looked");
    }
}
