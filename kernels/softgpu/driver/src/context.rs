//! Driver, contexts and error texts. Each device has its primary context and no other.

use std::ffi::{c_char, c_int, c_uint};

use crate::{
    abi::{CUdevice, CUresult, Error, Handle, describe, put},
    call::{self, in_context, initialized},
    device::Device,
};

/// What `cuDriverGetVersion` answers: CUDA 13.0.
const DRIVER_VERSION: c_int = 13000;
/// Handle of device 0's primary context; that of device `i` is `i` more.
const FIRST_CONTEXT: Handle = 0x100;

/// The device of a context.
fn device_of(device: &Device, context: Handle) -> Result<CUdevice, Error> {
    let ordinal = context.checked_sub(FIRST_CONTEXT).and_then(|i| CUdevice::try_from(i).ok());
    ordinal.filter(|&i| i < device.count).ok_or(Error::InvalidContext)
}

/// Refuses an ordinal that is no device.
pub(crate) fn known(device: &Device, ordinal: CUdevice) -> Result<(), Error> {
    if (0..device.count).contains(&ordinal) { Ok(()) } else { Err(Error::InvalidDevice) }
}

/// Makes the device ready. `SOFTGPU_*` variables are read here.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuInit(flags: c_uint) -> CUresult {
    if flags != 0 {
        return Error::InvalidValue as CUresult;
    }
    call::code(call::initialize())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CUresult {
    // SAFETY: the caller passes a valid pointer.
    call::code(unsafe { put(version, DRIVER_VERSION) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: CUresult, name: *mut *const c_char) -> CUresult {
    let text = describe(error).map_or(std::ptr::null(), |(name, _)| name.as_ptr());
    // SAFETY: the caller passes a valid pointer.
    call::code(unsafe { put(name, text) }.and(if text.is_null() { Err(Error::InvalidValue) } else { Ok(()) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(error: CUresult, string: *mut *const c_char) -> CUresult {
    let text = describe(error).map_or(std::ptr::null(), |(_, text)| text.as_ptr());
    // SAFETY: the caller passes a valid pointer.
    call::code(unsafe { put(string, text) }.and(if text.is_null() { Err(Error::InvalidValue) } else { Ok(()) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, ordinal: CUdevice) -> CUresult {
    initialized(|device| {
        known(device, ordinal)?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(context, FIRST_CONTEXT + ordinal as Handle) }
    })
}

/// The context stays: work that is queued may still be asked for, and a fault is not forgotten within a process.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(ordinal: CUdevice) -> CUresult {
    initialized(|device| known(device, ordinal))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxGetState(ordinal: CUdevice, flags: *mut c_uint, active: *mut c_int) -> CUresult {
    initialized(|device| {
        known(device, ordinal)?;
        // SAFETY: the caller passes valid pointers.
        unsafe { put(flags, 0).and(put(active, 1)) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: Handle) -> CUresult {
    initialized(|device| {
        if context != 0 {
            device_of(device, context)?;
        }
        call::set_current(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> CUresult {
    // SAFETY: the caller passes a valid pointer.
    initialized(|_| unsafe { put(context, call::current()) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetDevice(ordinal: *mut CUdevice) -> CUresult {
    // SAFETY: the caller passes a valid pointer.
    in_context(|device| unsafe { put(ordinal, device_of(device, call::current())?) })
}

/// How the caller waits makes no difference here.
#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(_flags: c_uint) -> CUresult {
    in_context(|_| Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> CUresult {
    in_context(Device::synchronize)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> CUresult {
    // SAFETY: null means that the caller does not want the value; otherwise it is valid.
    in_context(|_| unsafe {
        if !least.is_null() {
            put(least, 0)?;
        }
        if !greatest.is_null() {
            put(greatest, -5)?;
        }
        Ok(())
    })
}
