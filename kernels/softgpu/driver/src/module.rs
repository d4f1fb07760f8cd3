//! Modules: PTX is taken, machine code is not.

use std::{
    ffi::{CStr, c_char, c_void},
    sync::Arc,
};

use ballast_softgpu::Module;

use crate::{
    abi::{CUdeviceptr, CUresult, Error, Handle, put},
    call::{self, in_context},
    device::Device,
    kernel::Function,
};

/// First bytes of a cubin (an ELF file) and of a fat binary.
const MACHINE_CODE: [[u8; 4]; 2] = [*b"\x7fELF", [0x50, 0xED, 0x55, 0xBA]];

/// A module with its variables in device memory. Work that is queued keeps it alive after `cuModuleUnload`.
pub(crate) struct LoadedModule {
    pub(crate) module: Module,
}

impl Drop for LoadedModule {
    fn drop(&mut self) {
        let Ok(device) = call::device() else { return };
        if let Err(error) = self.module.unplace(&device.table) {
            device.raise(Error::IllegalAddress, &format!("unload of a module: {error}"));
        }
    }
}

fn load(device: &Device, image: &[u8]) -> Result<Handle, Error> {
    if MACHINE_CODE.iter().any(|magic| image.starts_with(magic)) {
        return Err(Error::NoBinaryForGpu);
    }
    let ptx = std::str::from_utf8(image).map_err(|_| Error::InvalidImage)?;
    if !ptx.contains(".version") {
        return Err(Error::InvalidImage);
    }
    let mut module = Module::parse(ptx).map_err(|error| {
        eprintln!("softgpu: {error}");
        Error::InvalidPtx
    })?;
    module.place(&device.table).map_err(|_| Error::OutOfMemory)?;
    Ok(device.modules.insert(LoadedModule { module }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut Handle, image: *const c_void) -> CUresult {
    in_context(|device| {
        if image.is_null() {
            return Err(Error::InvalidValue);
        }
        // SAFETY: an image has at least four bytes.
        let magic = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
        if MACHINE_CODE.contains(&magic) {
            return Err(Error::NoBinaryForGpu);
        }
        // SAFETY: an image that is not machine code is text that ends in a zero.
        let text = unsafe { CStr::from_ptr(image.cast()) };
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(module, load(device, text.to_bytes())?) }
    })
}

/// Options of the compiler (register limits, log buffers) are refused rather than ignored.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut Handle,
    image: *const c_void,
    options: u32,
    _names: *mut u32,
    _values: *mut *mut c_void,
) -> CUresult {
    if options != 0 {
        return Error::NotSupported as CUresult;
    }
    // SAFETY: the same contract.
    unsafe { cuModuleLoadData(module, image) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoad(module: *mut Handle, path: *const c_char) -> CUresult {
    in_context(|device| {
        // SAFETY: the caller passes a string that ends in a zero.
        let path = unsafe { name(path) }?;
        let image = std::fs::read(path).map_err(|_| Error::FileNotFound)?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(module, load(device, &image)?) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: Handle) -> CUresult {
    in_context(|device| device.modules.remove(module).map(|_| ()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(function: *mut Handle, module: Handle, kernel: *const c_char) -> CUresult {
    in_context(|device| {
        let module = device.modules.get(module)?;
        // SAFETY: the caller passes a string that ends in a zero.
        let kernel = unsafe { name(kernel) }?;
        let found = module.module.kernels().iter().position(|known| known.name == kernel).ok_or(Error::NotFound)?;
        let handle = device.functions.insert(Function::new(&module, found));
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(function, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut CUdeviceptr,
    bytes: *mut usize,
    module: Handle,
    variable: *const c_char,
) -> CUresult {
    in_context(|device| {
        let module: Arc<LoadedModule> = device.modules.get(module)?;
        // SAFETY: the caller passes a string that ends in a zero.
        let global = module.module.global(unsafe { name(variable) }?).ok_or(Error::NotFound)?;
        // SAFETY: null means that the caller does not want the value; otherwise it is valid.
        unsafe {
            if !address.is_null() {
                put(address, global.address)?;
            }
            if !bytes.is_null() {
                put(bytes, global.size)?;
            }
        }
        Ok(())
    })
}

/// # Safety
/// `text` is null or a string that ends in a zero and outlives the result.
unsafe fn name<'a>(text: *const c_char) -> Result<&'a str, Error> {
    if text.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: see above.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| Error::InvalidValue)
}
