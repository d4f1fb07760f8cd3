//! Launches of kernels from a PTX file, by their names in the source.

use cudarc::driver::{CudaContext, result, sys};
use std::error::Error;
use std::ffi::{CString, c_void};
use std::path::Path;

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Value {
    /// Memory of so many bytes, all zero.
    Zeros(usize),
    Null,
    I32(i32),
    I64(i64),
    F32(f32),
}

impl Value {
    pub(crate) fn zeros(bytes: usize) -> Self {
        Self::Zeros(bytes)
    }
}

/// One launch.
pub(crate) struct Launch {
    pub(crate) kernel: &'static str,
    grid: [usize; 2],
    block: [usize; 2],
    shared: usize,
    args: Vec<Value>,
}

impl Launch {
    pub(crate) fn new(kernel: &'static str, grid: [usize; 2], block: [usize; 2]) -> Self {
        Self { kernel, grid, block, shared: 0, args: Vec::new() }
    }

    /// With so many bytes of dynamic shared memory.
    pub(crate) fn shared(self, shared: usize) -> Self {
        Self { shared, ..self }
    }

    /// With these arguments after the others.
    pub(crate) fn args(mut self, args: &[Value]) -> Self {
        self.args.extend(args);
        self
    }
}

/// The entry point that C++ makes of a kernel: its name is in it, behind the name's length.
fn entry<'a>(ptx: &'a str, kernel: &str) -> Result<&'a str, String> {
    let mangled = format!("_Z{}{kernel}", kernel.len());
    let names = ptx.lines().filter_map(|line| line.split_once(".entry ")).map(|(_, name)| name.trim_end_matches('('));
    names.into_iter().find(|name| name.starts_with(&mangled)).ok_or_else(|| format!("the PTX holds no {kernel}"))
}

/// Runs them one after the other.
pub(crate) fn run(file: &Path, launches: &[Launch]) -> Result<(), Box<dyn Error>> {
    let ptx = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let context = CudaContext::new(0)?;
    context.bind_to_thread()?;
    let image = CString::new(ptx.as_str())?;
    // SAFETY: text that ends in a zero; the driver copies what it keeps.
    let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
    for launch in launches {
        let name = CString::new(entry(&ptx, launch.kernel)?)?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(module, name) }?;
        start(function, launch)?;
    }
    context.synchronize()?;
    Ok(())
}

fn start(function: sys::CUfunction, launch: &Launch) -> Result<(), Box<dyn Error>> {
    let mut values = launch.args.iter().map(|arg| value(*arg)).collect::<Result<Vec<u64>, _>>()?;
    let mut parameters: Vec<*mut c_void> =
        values.iter_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>()).collect();
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let ([x, y], [width, height]) = (launch.grid, launch.block);
    let (grid, block) = ((x as u32, y as u32, 1), (width as u32, height as u32, 1));
    // SAFETY: the function is loaded; each parameter points at a value of its size or more, in the low bytes, and its
    // memory is as large as the kernel takes it to be: the software device would end the process otherwise.
    unsafe {
        result::function::set_function_attribute(function, attribute, launch.shared as i32)?;
        let stream = std::ptr::null_mut();
        result::launch_kernel(function, grid, block, launch.shared as u32, stream, &mut parameters)?;
    }
    Ok(())
}

/// The bits of an argument. Memory is given back when the process ends.
fn value(value: Value) -> Result<u64, Box<dyn Error>> {
    Ok(match value {
        Value::Null => 0,
        Value::I32(value) => u64::from(value as u32),
        Value::I64(value) => value as u64,
        Value::F32(value) => value.to_bits().into(),
        Value::Zeros(bytes) => {
            // SAFETY: plain allocation, filled as far as it goes.
            unsafe {
                let memory = result::malloc_sync(bytes)?;
                result::memset_d8_sync(memory, 0, bytes)?;
                memory
            }
        }
    })
}
