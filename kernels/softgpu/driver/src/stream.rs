//! Streams, as the API shows them.

use std::{
    ffi::{c_int, c_uint, c_void},
    sync::Arc,
};

use crate::{
    abi::{CUresult, Error, Handle, HostFunction, put},
    call::{self, in_context},
    device::lock,
    queue::Stream,
    work::{UserData, Work},
};

const NON_BLOCKING: c_uint = 1;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreateWithPriority(stream: *mut Handle, flags: c_uint, priority: c_int) -> CUresult {
    in_context(|device| {
        if flags & !NON_BLOCKING != 0 {
            return Err(Error::InvalidValue);
        }
        let handle = device.streams.insert(Stream::new(flags & NON_BLOCKING == 0, priority.clamp(-5, 0)));
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(stream, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, flags: c_uint) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuStreamCreateWithPriority(stream, flags, 0) }
}

/// Returns at once; work that is queued is still done.
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: Handle) -> CUresult {
    in_context(|device| {
        let stream = device.streams.remove(stream)?;
        stream.close();
        if !stream.is_done(stream.queued()) {
            lock(&device.draining).push(stream);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: Handle) -> CUresult {
    in_context(|device| {
        let stream = device.stream(stream)?;
        stream.wait(stream.queued());
        device.healthy()
    })
}

/// Asking lets the stream's work run, so that a program that polls gets there.
#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: Handle) -> CUresult {
    in_context(|device| {
        let stream = device.stream(stream)?;
        let upto = stream.queued();
        stream.release(upto);
        if stream.is_done(upto) { device.healthy() } else { Err(Error::NotReady) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetFlags(stream: Handle, flags: *mut c_uint) -> CUresult {
    in_context(|device| {
        let flag = if device.stream(stream)?.is_blocking() { 0 } else { NON_BLOCKING };
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(flags, flag) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetPriority(stream: Handle, priority: *mut c_int) -> CUresult {
    // SAFETY: the caller passes a valid pointer.
    in_context(|device| unsafe { put(priority, device.stream(stream)?.priority()) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetCtx(stream: Handle, context: *mut Handle) -> CUresult {
    in_context(|device| {
        let _: Arc<Stream> = device.stream(stream)?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(context, call::current()) }
    })
}

/// The function runs on a thread of the driver and may not call it. It does not run at all after a fault.
#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(stream: Handle, function: HostFunction, data: *mut c_void) -> CUresult {
    in_context(|device| {
        let function = function.ok_or(Error::InvalidValue)?;
        let stream = device.stream(stream)?;
        device.enqueue(&stream, Work::Host { function, data: UserData(data) }).map(|_| ())
    })
}

/// Capture into graphs is not supported, so no stream is ever capturing.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamIsCapturing(stream: Handle, status: *mut c_uint) -> CUresult {
    in_context(|device| {
        device.stream(stream)?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(status, 0) }
    })
}
