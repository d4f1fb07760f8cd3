//! What the threads around a communicator share: its state, and the lock on NCCL.

use super::calls::{Raw, Words};
use super::error::{CommunicatorError, Member};
use super::state::{Duty, State};
use super::stream::Mark;
use crate::KernelError;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The communicator failed, and [`Shared`] holds why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stopped;

/// NCCL's communicator, behind the lock that lets one thread at a time call into it.
#[derive(Debug)]
pub(super) enum Slot {
    /// Not yet begun.
    Empty,
    /// Begun, and perhaps made.
    Live(Raw),
    /// Taken by the watchdog, to be ended or ended already.
    Ended,
}

/// What owner, watchdog and abort handle share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) member: Member,
    pub(super) timeout: Duration,
    /// Never held for long: no call but those of the watchdog, which has taken the communicator out, waits in NCCL.
    /// It is never locked while `state` is.
    slot: Mutex<Slot>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    pub(super) fn new(member: Member, timeout: Duration) -> Self {
        let (slot, state, changed) = (Mutex::new(Slot::Empty), Mutex::default(), Condvar::new());
        Self { member, timeout, slot, state, changed }
    }

    /// Makes NCCL's communicator, unless the watchdog has given it up already.
    pub(super) fn install(&self, make: impl FnOnce() -> Result<Raw, Words>) -> Result<(), Stopped> {
        let made = {
            let mut slot = self.slot();
            if matches!(*slot, Slot::Ended) {
                return Err(Stopped);
            }
            make().map(|raw| *slot = Slot::Live(raw))
        };
        made.map_err(|words| self.refused(words))
    }

    /// Calls into NCCL. A failure is that of what is under way.
    pub(super) fn call<T>(&self, call: impl FnOnce(&Raw) -> Result<T, Words>) -> Result<T, Stopped> {
        let answer = match &*self.slot() {
            Slot::Live(raw) => call(raw),
            Slot::Empty | Slot::Ended => return Err(Stopped),
        };
        answer.map_err(|words| self.refused(words))
    }

    /// Takes NCCL's communicator, which nobody can call into afterwards.
    pub(super) fn take(&self) -> Option<Raw> {
        match std::mem::replace(&mut *self.slot(), Slot::Ended) {
            Slot::Live(raw) => Some(raw),
            Slot::Empty | Slot::Ended => None,
        }
    }

    fn refused(&self, words: Words) -> Stopped {
        self.fail(|member, operation| CommunicatorError::Failed { member, operation, words })
    }

    /// Records a failure of the device.
    pub(super) fn device(&self, source: KernelError) -> Stopped {
        self.fail(|member, operation| CommunicatorError::Device { member, operation, source })
    }

    /// Records a failure of the device in place of what NCCL or an abort made of it, unless that was told already.
    pub(super) fn overrule(&self, source: KernelError) {
        let mut state = self.state();
        let (member, operation) = (self.member, state.operation());
        let error = CommunicatorError::Device { member, operation, source };
        tracing::error!(%error, "the device failed, or does not come to rest");
        state.overrule(error);
        self.changed.notify_all();
    }

    pub(super) fn abort(&self, reason: &str) {
        self.fail(|member, _| CommunicatorError::Aborted { member, reason: reason.to_owned() });
    }

    /// Records that what is under way did not end in time.
    pub(super) fn late(&self) {
        let timeout = self.timeout;
        self.fail(|member, operation| CommunicatorError::TimedOut { member, operation, timeout });
    }

    /// Records a failure of what is under way; the first one stays.
    fn fail(&self, error: impl FnOnce(Member, String) -> CommunicatorError) -> Stopped {
        let mut state = self.state();
        let operation = state.operation();
        state.fail(error(self.member, operation));
        self.changed.notify_all();
        Stopped
    }

    /// # Errors
    /// When the communicator has failed.
    pub(super) fn healthy(&self) -> Result<(), Stopped> {
        if self.state().failed() { Err(Stopped) } else { Ok(()) }
    }

    /// The failure: in full to the first who asks, to later ones as that of an earlier call.
    pub(super) fn error(&self) -> CommunicatorError {
        self.state().tell(self.member)
    }

    /// Something begins that needs the other ranks; its clock runs once nothing is in front of it.
    pub(super) fn begin(&self, name: String) -> Result<(), Stopped> {
        let mut state = self.state();
        if state.failed() {
            return Err(Stopped);
        }
        state.begin(name, Instant::now());
        self.changed.notify_all();
        Ok(())
    }

    /// The operation that was begun last is enqueued, and ends there.
    pub(super) fn enqueued(&self, mark: Mark) {
        if let Some(last) = self.state().operations.back_mut() {
            last.mark = Some(mark);
        }
    }

    /// Where the oldest of the enqueued operations ends.
    pub(super) fn oldest(&self) -> Option<Mark> {
        self.state().operations.front().and_then(|oldest| oldest.mark.clone())
    }

    /// An operation is over on the device; its caller has yet to look.
    pub(super) fn pass(&self, number: u64) {
        self.state().pass(number, Instant::now());
    }

    /// The oldest operation is over and its caller knows, unless the communicator has failed.
    pub(super) fn finish(&self) -> Result<(), Stopped> {
        let mut state = self.state();
        if state.failed() {
            return Err(Stopped);
        }
        if let Some(number) = state.operations.front().map(|oldest| oldest.number) {
            state.pass(number, Instant::now());
            state.operations.pop_front();
        }
        Ok(())
    }

    /// Forgets what was under way: it is over, one way or another.
    pub(super) fn forget(&self) {
        self.state().forget();
    }

    /// Whether anything is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.state().operations.is_empty()
    }

    /// The owner is done.
    pub(super) fn close(&self) {
        self.state().closing = true;
        self.changed.notify_all();
    }

    /// Waits until the watchdog has something to do.
    pub(super) fn duty(&self) -> Duty {
        let mut state = self.state();
        loop {
            state = match state.duty(self.timeout, Instant::now()) {
                Ok(duty) => return duty,
                Err(None) => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Err(Some(time)) => {
                    let (state, waited) =
                        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner);
                    if waited.timed_out() && state.duty(self.timeout, Instant::now()).is_err() {
                        return Duty::Poll;
                    }
                    state
                }
            };
        }
    }

    /// Lets a little time pass, less if the communicator fails.
    pub(super) fn pause(&self, time: Duration) -> Result<(), Stopped> {
        let state = self.state();
        let waited = self.changed.wait_timeout_while(state, time, |state| !state.failed());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.failed() { Err(Stopped) } else { Ok(()) }
    }

    /// NCCL's communicator is no more.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_all();
    }

    /// Waits until NCCL's communicator is no more, and tells whether it is not.
    pub(super) fn await_end(&self, limit: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), limit, |state| !state.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_device_is_told_in_place_of_what_hides_it() {
        let shared = Shared::new(Member { rank: 1, world_size: 2 }, Duration::from_secs(10));
        shared.begin("a sum".to_owned()).unwrap();
        shared.abort("membership changed");
        shared.overrule(KernelError::Device("lost".to_owned()));
        let error = shared.error();
        assert!(matches!(&error, CommunicatorError::Device { operation, .. } if operation == "a sum"), "{error}");
        shared.overrule(KernelError::Device("lost again".to_owned()));
        assert!(matches!(shared.error(), CommunicatorError::Broken { cause, .. } if cause == error.to_string()));
    }

    #[test]
    fn a_failure_comes_before_a_clean_end_and_is_told_in_full_once() {
        let shared = Shared::new(Member { rank: 1, world_size: 2 }, Duration::from_secs(10));
        shared.begin("a sum".to_owned()).unwrap();
        shared.close();
        shared.late();
        shared.abort("too late to matter");
        assert!(matches!(shared.duty(), Duty::Abort));
        assert!(matches!(shared.error(), CommunicatorError::TimedOut { operation, .. } if operation == "a sum"));
        assert!(matches!(shared.error(), CommunicatorError::Broken { cause, .. } if cause.contains("a sum")));
        assert_eq!((shared.finish(), shared.begin(String::new())), (Err(Stopped), Err(Stopped)));
    }
}
