//! The driver, as the stand-ins for cuBLASLt and NCCL use it: found in the running process, not linked, since it is
//! the program that chooses which `libcuda.so` it loads. This file is part of both.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    sync::OnceLock,
};

type HostFunction = unsafe extern "C" fn(*mut c_void);
/// What waits in a stream's queue: a function to be called once.
type Queued = Box<dyn FnOnce() + Send>;

/// The functions of the driver that stand-ins call.
#[derive(Clone, Copy)]
pub(crate) struct Driver {
    launch_host_function: unsafe extern "C" fn(usize, HostFunction, *mut c_void) -> u32,
    check_range: unsafe extern "C" fn(u64, usize) -> u32,
    raise: unsafe extern "C" fn(u32, *const c_char) -> u32,
    current_context: unsafe extern "C" fn(*mut usize) -> u32,
    current_device: unsafe extern "C" fn(*mut i32) -> u32,
    synchronize_context: unsafe extern "C" fn() -> u32,
    synchronize_stream: unsafe extern "C" fn(usize) -> u32,
    set_current_context: unsafe extern "C" fn(usize) -> u32,
}

/// The driver that this process has loaded, if it is that of the software device.
pub(crate) fn driver() -> Option<Driver> {
    static FOUND: OnceLock<Driver> = OnceLock::new();
    if let Some(driver) = FOUND.get() {
        return Some(*driver);
    }
    let found = find()?;
    Some(*FOUND.get_or_init(|| found))
}

#[allow(clippy::missing_transmute_annotations, reason = "the fields of `Driver` are the annotations")]
fn find() -> Option<Driver> {
    let open = |name: &CStr| {
        // SAFETY: the name ends in a zero; only a library that is already loaded is opened.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        (!library.is_null()).then_some(library)
    };
    let library = [c"libcuda.so", c"libcuda.so.1"].into_iter().find_map(open)?;
    macro_rules! function {
        ($name:literal) => {{
            // SAFETY: the library is loaded and the name ends in a zero.
            let address = unsafe { libc::dlsym(library, $name.as_ptr()) };
            if address.is_null() {
                return None;
            }
            // SAFETY: a function of that name has the type of the field that it goes to.
            unsafe { std::mem::transmute::<*mut c_void, _>(address) }
        }};
    }
    Some(Driver {
        launch_host_function: function!(c"cuLaunchHostFunc"),
        check_range: function!(c"softgpu_check_range"),
        raise: function!(c"softgpu_raise"),
        current_context: function!(c"cuCtxGetCurrent"),
        current_device: function!(c"cuCtxGetDevice"),
        synchronize_context: function!(c"cuCtxSynchronize"),
        synchronize_stream: function!(c"cuStreamSynchronize"),
        set_current_context: function!(c"cuCtxSetCurrent"),
    })
}

#[allow(dead_code, reason = "each stand-in uses its part")]
impl Driver {
    /// Queues a function on a stream. After a fault it is never called.
    ///
    /// # Errors
    /// The driver's `CUresult`.
    pub(crate) fn queue(self, stream: usize, work: impl FnOnce() + Send + 'static) -> Result<(), u32> {
        unsafe extern "C" fn call(data: *mut c_void) {
            // SAFETY: `data` is the box made below, and the driver calls at most once.
            let work = unsafe { Box::from_raw(data.cast::<Queued>()) };
            work();
        }
        let data = Box::into_raw(Box::new(Box::new(work) as Queued));
        // SAFETY: the function and its data belong together.
        match unsafe { (self.launch_host_function)(stream, call, data.cast()) } {
            0 => Ok(()),
            code => {
                // SAFETY: the driver refused the call and will not use the data.
                drop(unsafe { Box::from_raw(data) });
                Err(code)
            }
        }
    }

    /// Whether the bytes lie within one allocation of the device.
    pub(crate) fn holds(self, address: u64, bytes: usize) -> bool {
        // SAFETY: a question about numbers.
        unsafe { (self.check_range)(address, bytes) == 0 }
    }

    /// Raises `CUDA_ERROR_ILLEGAL_ADDRESS`, as a kernel would that reached outside its operands.
    pub(crate) fn illegal_address(self, message: &str) {
        const ILLEGAL_ADDRESS: u32 = 700;
        let text = CString::new(message).unwrap_or_default();
        // SAFETY: the text ends in a zero and outlives the call.
        unsafe { (self.raise)(ILLEGAL_ADDRESS, text.as_ptr()) };
    }

    /// Waits for all work of the context that is current to this thread.
    pub(crate) fn synchronize_all(self) {
        // SAFETY: it takes nothing. A failure is another call's to tell.
        unsafe { (self.synchronize_context)() };
    }

    /// The context that is current to this thread, if any.
    pub(crate) fn context(self) -> Option<usize> {
        let mut context = 0;
        // SAFETY: a valid place for the answer.
        let code = unsafe { (self.current_context)(&raw mut context) };
        (code == 0 && context != 0).then_some(context)
    }

    /// The device of the current context.
    ///
    /// # Errors
    /// The driver's `CUresult`.
    pub(crate) fn device(self) -> Result<i32, u32> {
        let mut device = 0;
        // SAFETY: a valid place for the answer.
        match unsafe { (self.current_device)(&raw mut device) } {
            0 => Ok(device),
            code => Err(code),
        }
    }

    /// Makes a context current to this thread.
    ///
    /// # Errors
    /// The driver's `CUresult`.
    pub(crate) fn enter(self, context: usize) -> Result<(), u32> {
        // SAFETY: a handle that the program gave; the driver checks it.
        match unsafe { (self.set_current_context)(context) } {
            0 => Ok(()),
            code => Err(code),
        }
    }

    /// Makes a context current and waits for a stream.
    ///
    /// # Errors
    /// The driver's `CUresult`.
    pub(crate) fn synchronize(self, context: usize, stream: usize) -> Result<(), u32> {
        self.enter(context)?;
        // SAFETY: a handle that the program gave; the driver checks it.
        match unsafe { (self.synchronize_stream)(stream) } {
            0 => Ok(()),
            code => Err(code),
        }
    }
}
