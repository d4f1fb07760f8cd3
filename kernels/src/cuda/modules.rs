//! The compiled kernels: embedded by build.rs, loaded when first used.

use super::device::{failed, unusable, words};
use super::libraries::Library;
use crate::KernelError;
use crate::contract::Result;
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule, CUresult};
use cudarc::driver::{DriverError, result};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

/// File of `kernels/cuda`, form (`ptx`, or `sm_80` and the like for a cubin), content.
type Artifact = (&'static str, &'static str, &'static [u8]);

static ARTIFACTS: &[Artifact] = include!(concat!(env!("OUT_DIR"), "/artifacts.rs"));

/// The architecture that the PTX is for.
const PTX_CAPABILITY: (i32, i32) = (8, 0);

/// Dynamic shared memory that a kernel may have without asking.
const ORDINARY_SHARED_BYTES: u32 = 48 << 10;

/// A kernel, and the dynamic shared memory it is allowed.
#[derive(Clone, Copy, Debug)]
struct Function {
    handle: CUfunction,
    shared_bytes: u32,
}

#[derive(Debug)]
struct Module {
    handle: CUmodule,
    functions: HashMap<String, Function>,
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded once, with the device idle and its context current. A failure leaves nothing to
        // do.
        let _ = unsafe { result::module::unload(self.handle) };
    }
}

// SAFETY: handles of the driver, which may be used by any thread of the process; the context they belong to outlives
// them, as `Device` owns both.
unsafe impl Send for Module {}

/// The forms in which a device of this compute capability runs a kernel, best first: the cubin for its architecture, one
/// for its major version and a smaller minor, and PTX, which the driver compiles.
fn forms((major, minor): (i32, i32)) -> impl Iterator<Item = String> {
    (0..=minor).rev().map(move |minor| format!("sm_{major}{minor}")).chain(["ptx".to_owned()])
}

/// Which form of the kernels a device of this compute capability runs, in words; `None` when it is too old for all.
#[must_use]
pub fn kernels_for(capability: (i32, i32)) -> Option<String> {
    require_kernels(capability).ok()
}

/// As [`kernels_for`], or why there are none.
pub(super) fn require_kernels(capability: (i32, i32)) -> std::result::Result<String, String> {
    let ((major, minor), (least_major, least_minor)) = (capability, PTX_CAPABILITY);
    if capability < PTX_CAPABILITY {
        return Err(format!(
            "its compute capability is {major}.{minor}, and {least_major}.{least_minor} or later is needed"
        ));
    }
    let has = |form: &String| ARTIFACTS.iter().any(|(_, there, _)| there == form);
    match forms(capability).find(has) {
        Some(form) if form == "ptx" => Ok("kernels compiled by the driver from PTX".to_owned()),
        Some(form) => Ok(format!("kernels of {form}")),
        None => Err(format!("this build has no kernels for its compute capability {major}.{minor}")),
    }
}

/// The modules of one device.
#[derive(Debug)]
pub(super) struct Modules {
    capability: (i32, i32),
    loaded: Mutex<HashMap<&'static str, Module>>,
}

impl Modules {
    /// For a device of this compute capability.
    pub(super) fn new(major: i32, minor: i32) -> Self {
        Self { capability: (major, minor), loaded: Mutex::default() }
    }

    pub(super) fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// A kernel of a file, ready for `shared_bytes` of dynamic shared memory. The device's context is current.
    pub(super) fn function(&self, file: &'static str, kernel: &str, shared_bytes: u32) -> Result<CUfunction> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if !loaded.contains_key(file) {
            loaded.insert(file, Module { handle: self.load(file)?, functions: HashMap::new() });
        }
        let Some(module) = loaded.get_mut(file) else {
            return Err(KernelError::Device(format!("{file}.cu is not loaded")));
        };
        if !module.functions.contains_key(kernel) {
            let function = Function { handle: find(module.handle, file, kernel)?, shared_bytes: ORDINARY_SHARED_BYTES };
            module.functions.insert(kernel.to_owned(), function);
        }
        let Some(function) = module.functions.get_mut(kernel) else {
            return Err(KernelError::Device(format!("{kernel} of {file}.cu is not loaded")));
        };
        if shared_bytes > function.shared_bytes {
            allow_shared(function.handle, file, kernel, shared_bytes)?;
            function.shared_bytes = shared_bytes;
        }
        Ok(function.handle)
    }

    /// Loads a file: the cubin for this architecture (one for its major version and a smaller minor runs too), else
    /// PTX, which the driver compiles.
    fn load(&self, file: &'static str) -> Result<CUmodule> {
        #[cfg(feature = "reference")]
        if let Some(module) = replaced(file)? {
            return Ok(module);
        }
        let (major, minor) = self.capability;
        let mut refused = String::new();
        for form in forms(self.capability) {
            let Some((_, _, content)) = ARTIFACTS.iter().find(|(f, g, _)| *f == file && *g == form) else { continue };
            match load_image(content) {
                Ok(module) => return Ok(module),
                // Another form may do.
                Err(DriverError(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)) => {
                    refused.push_str(&format!("; {form} refused"))
                }
                Err(error) => return Err(not_loaded(file, &form, error)),
            }
        }
        Err(KernelError::Unusable(format!("{file}.cu has no form for sm_{major}{minor}{refused}")))
    }
}

/// Why a form could not be loaded: refused for good by a driver that cannot compile it, or failed.
fn not_loaded(file: &str, form: &str, error: DriverError) -> KernelError {
    let what = format!("loading {file}.{form}");
    match error.0 {
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => KernelError::Unusable(format!(
            "{what}: {}: the driver is older than the kernels' PTX; {}",
            words(error),
            Library::Driver.remedy()
        )),
        CUresult::CUDA_ERROR_INVALID_PTX
        | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED => unusable(what)(error),
        _ => failed(what)(error),
    }
}

/// For tests of the tests (`make mutants`): a file's PTX from the directory that `BALLAST_CUDA_PTX` names, if it is
/// there.
#[cfg(feature = "reference")]
fn replaced(file: &str) -> Result<Option<CUmodule>> {
    let Some(directory) = std::env::var_os("BALLAST_CUDA_PTX") else { return Ok(None) };
    let path = std::path::Path::new(&directory).join(format!("{file}.ptx"));
    match std::fs::read(&path) {
        Ok(ptx) => load_image(&ptx).map(Some).map_err(failed(format_args!("loading {}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KernelError::Device(format!("{}: {error}", path.display()))),
    }
}

/// Loads a cubin or PTX. The driver wants PTX to end in a zero and cubins to be aligned: a copy is both.
fn load_image(content: &[u8]) -> std::result::Result<CUmodule, DriverError> {
    let mut image = vec![0_u64; content.len() / 8 + 1];
    // SAFETY: the vector has at least one byte more than `content`, and bytes have no invalid values.
    unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), image.as_mut_ptr().cast::<u8>(), content.len()) };
    // SAFETY: a whole image, ending in a zero; the driver copies what it keeps.
    unsafe { result::module::load_data(image.as_ptr().cast()) }
}

fn find(module: CUmodule, file: &str, kernel: &str) -> Result<CUfunction> {
    let name = CString::new(kernel).map_err(|_| KernelError::Device(format!("{kernel:?} is no kernel's name")))?;
    // SAFETY: the module is loaded.
    unsafe { result::module::get_function(module, name) }.map_err(failed(format_args!("finding {kernel} of {file}.cu")))
}

fn allow_shared(function: CUfunction, file: &str, kernel: &str, bytes: u32) -> Result<()> {
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function is loaded.
    unsafe { result::function::set_function_attribute(function, attribute, bytes as i32) }
        .map_err(failed(format_args!("{bytes} bytes of shared memory for {kernel} of {file}.cu")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_too_old_is_told_what_is_needed() {
        for capability in [(7, 5), (6, 1)] {
            let why = require_kernels(capability).unwrap_err();
            assert!(
                why.contains(&format!("{}.{}", capability.0, capability.1)) && why.contains("8.0 or later"),
                "{why}"
            );
            assert_eq!(kernels_for(capability), None);
        }
        assert!(require_kernels((8, 0)).is_ok() && require_kernels((99, 0)).unwrap().contains("PTX"));
    }

    #[test]
    fn what_a_driver_refuses_for_good_is_no_failure_of_the_device() {
        let error = not_loaded("rows", "ptx", DriverError(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION));
        assert!(matches!(&error, KernelError::Unusable(why) if why.contains(Library::Driver.remedy())), "{error}");
        let error = not_loaded("rows", "ptx", DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
        assert!(matches!(error, KernelError::Device(_)), "{error}");
    }
}
