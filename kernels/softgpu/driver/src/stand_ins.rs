//! What the stand-ins for cuBLASLt and NCCL need of the driver, beyond its public functions. Both may be called inside
//! a host function.

use std::ffi::{CStr, c_char};

use crate::{
    abi::{CUdeviceptr, CUresult, Error, error},
    call,
};

/// Whether the bytes lie within one allocation: 0, or `CUDA_ERROR_ILLEGAL_ADDRESS`.
#[unsafe(no_mangle)]
extern "C" fn softgpu_check_range(address: CUdeviceptr, bytes: usize) -> CUresult {
    call::initialized(|device| device.table.check(address, bytes as u64, 1).map_err(|_| Error::IllegalAddress))
}

/// Records a fault, as if a kernel had made it.
///
/// # Safety
/// `message` is a string that ends in a zero.
#[unsafe(no_mangle)]
unsafe extern "C" fn softgpu_raise(code: CUresult, message: *const c_char) -> CUresult {
    call::initialized(|device| {
        // SAFETY: the caller's promise.
        let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
        device.raise(error(code).unwrap_or(Error::Unknown), &message);
        Ok(())
    })
}
