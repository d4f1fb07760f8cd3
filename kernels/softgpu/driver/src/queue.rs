//! A stream: a queue of work and the thread that does it.
//!
//! Work runs on the stream's own thread, never on the caller's, so that a call that must not block does not. The thread
//! runs work up to a mark, `released`. The eager schedule moves the mark with each piece of work queued, the lazy one
//! only when somebody waits for the work or asks whether it is done.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use crate::{
    abi::Error,
    device::{Device, Schedule, lock},
    work::Work,
};

/// Work is numbered from 1 in the order of its queueing.
#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    queued: u64,
    released: u64,
    done: u64,
    has_thread: bool,
    closed: bool,
}

/// A CUDA stream.
pub(crate) struct Stream {
    blocking: bool,
    priority: i32,
    state: Mutex<State>,
    moved: Condvar,
}

impl Stream {
    pub(crate) fn new(blocking: bool, priority: i32) -> Self {
        Self { blocking, priority, state: Mutex::default(), moved: Condvar::new() }
    }

    /// Whether it synchronizes with the legacy default stream.
    pub(crate) fn is_blocking(&self) -> bool {
        self.blocking
    }

    pub(crate) fn priority(&self) -> i32 {
        self.priority
    }

    /// Number of the last piece of work.
    pub(crate) fn queued(&self) -> u64 {
        lock(&self.state).queued
    }

    pub(crate) fn is_done(&self, upto: u64) -> bool {
        lock(&self.state).done >= upto
    }

    /// Queues work and returns its number.
    pub(crate) fn push(self: &Arc<Self>, device: &'static Device, work: Work) -> Result<u64, Error> {
        let mut state = lock(&self.state);
        if !state.has_thread {
            let stream = Arc::clone(self);
            let spawned = thread::Builder::new().name("softgpu stream".to_owned()).spawn(move || stream.run(device));
            spawned.map_err(|_| Error::OutOfMemory)?;
            state.has_thread = true;
        }
        state.waiting.push_back(work);
        state.queued += 1;
        if device.schedule == Schedule::Eager {
            state.released = state.queued;
        }
        self.moved.notify_all();
        Ok(state.queued)
    }

    /// Lets work up to that number run, without waiting for it.
    pub(crate) fn release(&self, upto: u64) {
        let mut state = lock(&self.state);
        state.released = state.released.max(upto.min(state.queued));
        self.moved.notify_all();
    }

    /// Returns when work up to that number is done.
    pub(crate) fn wait(&self, upto: u64) {
        self.release(upto);
        let mut state = lock(&self.state);
        while state.done < upto {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// No more work will come; the thread ends after the last piece.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.moved.notify_all();
    }

    fn run(&self, device: &'static Device) {
        loop {
            let mut state = lock(&self.state);
            let work = loop {
                if state.done < state.released
                    && let Some(work) = state.waiting.pop_front()
                {
                    break work;
                }
                if state.closed && state.waiting.is_empty() {
                    return;
                }
                state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            work.run(device);
            lock(&self.state).done += 1;
            self.moved.notify_all();
        }
    }
}
