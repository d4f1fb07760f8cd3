//! What every exported function checks first: initialization, current context, earlier faults.

use std::{cell::Cell, sync::OnceLock};

use crate::{
    abi::{CUresult, Error},
    device::Device,
};

static DEVICE: OnceLock<Device> = OnceLock::new();

thread_local! {
    /// The context that is current to this thread; 0 if none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread is inside a host function, which may not call the driver.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// `cuInit`: makes the device out of the environment.
pub(crate) fn initialize() -> Result<(), Error> {
    if DEVICE.get().is_none() {
        let device = Device::from_env().map_err(|message| {
            eprintln!("softgpu: {message}");
            Error::Unknown
        })?;
        // Another thread may have been faster; then its device, read from the same environment, stays.
        let _ = DEVICE.set(device);
    }
    Ok(())
}

/// The device, once `cuInit` was called.
pub(crate) fn device() -> Result<&'static Device, Error> {
    DEVICE.get().ok_or(Error::NotInitialized)
}

/// A function that needs no more than an initialized driver.
pub(crate) fn initialized(f: impl FnOnce(&'static Device) -> Result<(), Error>) -> CUresult {
    code(device().and_then(f))
}

/// A function that needs a current context without a fault.
pub(crate) fn in_context(f: impl FnOnce(&'static Device) -> Result<(), Error>) -> CUresult {
    code(device().and_then(|device| {
        if IN_HOST_FUNCTION.get() {
            return Err(Error::NotPermitted);
        }
        if CURRENT.get() == 0 {
            return Err(Error::InvalidContext);
        }
        device.healthy()?;
        f(device)
    }))
}

pub(crate) fn code(result: Result<(), Error>) -> CUresult {
    result.err().map_or(0, |error| error as CUresult)
}

/// The context that is current to this thread; 0 if none.
pub(crate) fn current() -> usize {
    CURRENT.get()
}

pub(crate) fn set_current(context: usize) {
    CURRENT.set(context);
}

/// Runs a host function of the program.
pub(crate) fn as_host_function(f: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    f();
    IN_HOST_FUNCTION.set(false);
}
