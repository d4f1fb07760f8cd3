//! Looking up driver functions by name, as the CUDA runtime does.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr::{null, null_mut},
};

use crate::{
    abi::{CUresult, Error, put},
    call,
    context::cuInit,
};

const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;

/// A function of this library, the newest version of that name first.
fn lookup(name: &CStr) -> *mut c_void {
    // SAFETY: `Dl_info` is a struct of pointers, for which zeros are fine.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address lies in this library and `info` outlives the call.
    if unsafe { libc::dladdr(cuInit as *const c_void, &raw mut info) } == 0 {
        return null_mut();
    }
    // SAFETY: `dladdr` gave a valid path; the library is loaded, so this only finds it again.
    let library = unsafe { libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return null_mut();
    }
    let versions = ["_v4", "_v3", "_v2", ""].into_iter();
    let names = versions.filter_map(|suffix| CString::new([name.to_bytes(), suffix.as_bytes()].concat()).ok());
    // SAFETY: the handle is valid and each name ends in a zero.
    names.map(|name| unsafe { libc::dlsym(library, name.as_ptr()) }).find(|f| !f.is_null()).unwrap_or_default()
}

/// Looks a function up; `status` may be null.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: *const c_char,
    function: *mut *mut c_void,
    _version: c_int,
    _flags: u64,
    status: *mut u32,
) -> CUresult {
    if symbol.is_null() {
        return Error::InvalidValue as CUresult;
    }
    // SAFETY: the caller passes a string that ends in a zero.
    let found = lookup(unsafe { CStr::from_ptr(symbol) });
    if !status.is_null() {
        // SAFETY: not null, so valid by the API's contract.
        unsafe { status.write(if found.is_null() { NOT_FOUND } else { FOUND }) };
    }
    // SAFETY: the caller passes a valid pointer.
    let written = unsafe { put(function, found) };
    call::code(written.and(if found.is_null() { Err(Error::NotFound) } else { Ok(()) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetProcAddress(
    symbol: *const c_char,
    function: *mut *mut c_void,
    version: c_int,
    flags: u64,
) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuGetProcAddress_v2(symbol, function, version, flags, null_mut()) }
}

/// Private tables between NVIDIA's libraries: there are none. The function must be there, or NVRTC crashes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetExportTable(table: *mut *const c_void, _id: *const [u8; 16]) -> CUresult {
    // SAFETY: the caller passes a valid pointer.
    call::code(unsafe { put(table, null()) }.and(Err(Error::NotFound)))
}
