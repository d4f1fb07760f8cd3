//! Events. A record marks a place in a stream's queue; waiting for the event is waiting for that place.

use std::{
    ffi::c_uint,
    sync::{Arc, Mutex},
    time::Instant,
};

use crate::{
    abi::{CUresult, Error, Handle, put},
    call::in_context,
    device::lock,
    queue::Stream,
    work::Work,
};

const DISABLE_TIMING: c_uint = 2;

/// The place that the last `cuEventRecord` marked.
#[derive(Clone)]
struct Mark {
    stream: Arc<Stream>,
    number: u64,
}

#[derive(Default)]
struct State {
    mark: Option<Mark>,
    /// How often it was recorded.
    records: u64,
    /// When the stream came to the latest record.
    time: Option<Instant>,
}

/// A CUDA event.
pub(crate) struct Event {
    timed: bool,
    state: Mutex<State>,
}

impl Event {
    /// Called by the stream when it comes to a record. An older record than the latest no longer counts.
    pub(crate) fn happened(&self, record: u64, time: Instant) {
        let mut state = lock(&self.state);
        if state.records == record {
            state.time = Some(time);
        }
    }

    fn mark(&self) -> Option<Mark> {
        lock(&self.state).mark.clone()
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut Handle, flags: c_uint) -> CUresult {
    in_context(|device| {
        let handle = device.events.insert(Event { timed: flags & DISABLE_TIMING == 0, state: Mutex::default() });
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(event, handle) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Handle) -> CUresult {
    in_context(|device| device.events.remove(event).map(|_| ()))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> CUresult {
    in_context(|device| {
        let event = device.events.get(event)?;
        let stream = device.stream(stream)?;
        let record = {
            let mut state = lock(&event.state);
            state.records += 1;
            state.time = None;
            state.records
        };
        let number = device.enqueue(&stream, Work::Record { event: Arc::clone(&event), record })?;
        lock(&event.state).mark = Some(Mark { stream, number });
        Ok(())
    })
}

/// Asking lets the work before the event run, so that a program that polls gets there.
#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: Handle) -> CUresult {
    in_context(|device| {
        let Some(mark) = device.events.get(event)?.mark() else { return Ok(()) };
        // The answer is as of the question, which is what has the work done.
        let done = mark.stream.is_done(mark.number);
        mark.stream.release(mark.number);
        if done { device.healthy() } else { Err(Error::NotReady) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Handle) -> CUresult {
    in_context(|device| {
        if let Some(mark) = device.events.get(event)?.mark() {
            mark.stream.wait(mark.number);
        }
        device.healthy()
    })
}

/// Milliseconds of this machine's time: they say nothing about a GPU.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) -> CUresult {
    in_context(|device| {
        let (start, end) = (device.events.get(start)?, device.events.get(end)?);
        if !start.timed || !end.timed || start.mark().is_none() || end.mark().is_none() {
            return Err(Error::InvalidHandle);
        }
        let (from, to) = (lock(&start.state).time, lock(&end.state).time);
        let (Some(from), Some(to)) = (from, to) else { return Err(Error::NotReady) };
        let seconds = if to >= from { (to - from).as_secs_f32() } else { -(from - to).as_secs_f32() };
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(milliseconds, seconds * 1e3) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: Handle, end: Handle) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}

/// The wait is for the latest record made before this call; an event that was never recorded holds nothing up.
#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) -> CUresult {
    in_context(|device| {
        let stream = device.stream(stream)?;
        let Some(mark) = device.events.get(event)?.mark() else { return Ok(()) };
        device.enqueue(&stream, Work::Wait { stream: mark.stream, upto: mark.number }).map(|_| ())
    })
}
