//! What a machine has: for `ballast doctor`, and for errors that say what is missing.

use super::device::{driver_version, failed};
use super::libraries::Library;
use super::nccl;
use crate::contract::Result;
use cudarc::cublaslt;
use cudarc::driver::result;
use cudarc::driver::sys::CUdevice_attribute;

/// A CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProbe {
    /// As the driver calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: usize,
}

/// What a machine has of what the CUDA backend takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The newest CUDA version that the driver knows, as `(13, 0)`.
    pub driver: Option<(i32, i32)>,
    /// Devices, by ordinal.
    pub devices: Vec<DeviceProbe>,
    /// cuBLASLt's version, as its library counts it.
    pub cublaslt: Option<usize>,
    /// NCCL's version, as its library counts it.
    pub nccl: Option<i32>,
    /// Libraries that the loader does not find, and NCCL also where it finds one that is too old.
    pub missing: Vec<Library>,
    /// Why the driver is there and yet tells of no devices.
    pub failure: Option<String>,
}

/// Asks the machine. Fails never: what is wrong is in the answer.
#[must_use]
pub fn probe() -> Probe {
    let usable = |library: &Library| match library {
        Library::Driver | Library::CublasLt => library.is_present(),
        Library::Nccl => nccl::require().is_ok(),
    };
    let missing = [Library::Driver, Library::CublasLt, Library::Nccl].into_iter().filter(|library| !usable(library));
    let mut probe = Probe { missing: missing.collect(), nccl: nccl::version().ok(), ..Probe::default() };
    let has = |library| !probe.missing.contains(&library);
    if has(Library::CublasLt) {
        // SAFETY: the library is there; a question without operands.
        probe.cublaslt = Some(unsafe { cublaslt::sys::cublasLtGetVersion() });
    }
    if has(Library::Driver) {
        match devices() {
            Ok((version, devices)) => (probe.driver, probe.devices) = (Some(version), devices),
            Err(error) => probe.failure = Some(error.to_string()),
        }
    }
    probe
}

/// The driver's CUDA version, and its devices. The driver is there.
fn devices() -> Result<((i32, i32), Vec<DeviceProbe>)> {
    let version = driver_version()?;
    result::init().map_err(failed("starting the driver"))?;
    let count = result::device::get_count().map_err(failed("counting devices"))?;
    let devices = (0..count).map(device).collect::<Result<_>>()?;
    Ok((version, devices))
}

fn device(ordinal: i32) -> Result<DeviceProbe> {
    let device = result::device::get(ordinal).map_err(failed(format_args!("finding device {ordinal}")))?;
    let attribute = |attribute| {
        // SAFETY: the device was found just now.
        unsafe { result::device::get_attribute(device, attribute) }.map_err(failed("reading the compute capability"))
    };
    Ok(DeviceProbe {
        name: result::device::get_name(device).map_err(failed("reading a device's name"))?,
        capability: (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: the device was found just now.
        memory: unsafe { result::device::total_mem(device) }.map_err(failed("asking for a device's memory"))?,
    })
}
