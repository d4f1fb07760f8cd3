//! What this machine has for a worker, and what a worker would use of it.

use crate::device::Device;
use ballast_kernels::{Backend, KernelError, cpu::CpuBackend};
use ballast_proto::{ErrorCode, Failure};
use serde::Serialize;

/// A machine, as `ballast doctor` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Its processor.
    pub cpu: Cpu,
    /// What it has for CUDA; `None` when this binary was built without.
    pub cuda: Option<Cuda>,
}

/// A processor.
#[derive(Clone, Debug, Serialize)]
pub struct Cpu {
    /// Cores that this process may use.
    pub cores: usize,
    /// What the CPU backend computes with.
    pub arithmetic: String,
}

/// What a machine has of what the CUDA backend takes.
#[derive(Clone, Debug, Serialize)]
pub struct Cuda {
    /// The newest CUDA version that the driver knows, as `13.0`.
    pub driver: Option<String>,
    /// Devices, by ordinal.
    pub devices: Vec<CudaDevice>,
    /// cuBLASLt's version, as its library counts it.
    pub cublaslt: Option<usize>,
    /// NCCL's version, as its library counts it.
    pub nccl: Option<i32>,
    /// What is missing, and how to get it.
    pub missing: Vec<Missing>,
    /// Why the driver is there and yet tells of no devices.
    pub failure: Option<String>,
}

/// A CUDA device.
#[derive(Clone, Debug, Serialize)]
pub struct CudaDevice {
    /// As the driver calls it.
    pub name: String,
    /// Compute capability, as `8.0`.
    pub capability: String,
    /// Bytes of memory.
    pub memory: usize,
    /// Which form of the kernels it runs; `None` when none fits.
    pub kernels: Option<String>,
}

/// A library that the loader does not find, or finds too old: then its version is known.
#[derive(Clone, Debug, Serialize)]
pub struct Missing {
    /// Its file.
    pub library: &'static str,
    /// How to get it.
    pub remedy: &'static str,
    /// Whether only workers that meet others need it.
    pub for_several_workers: bool,
}

impl Machine {
    /// Looks at this machine.
    ///
    /// # Errors
    /// When not even the CPU can be used.
    pub fn look() -> Result<Self, Failure> {
        let unusable = |error: KernelError| Failure::new(ErrorCode::Internal, error.to_string());
        let arithmetic = CpuBackend::new(1).and_then(|backend| backend.arithmetic()).map_err(unusable)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { cpu: Cpu { cores, arithmetic }, cuda: look_for_cuda() })
    }

    /// Whether a worker could compute on this device.
    ///
    /// # Errors
    /// [`ErrorCode::DeviceUnusable`] with the first thing that stands in the way.
    pub fn usable(&self, device: Device) -> Result<(), Failure> {
        let Device::Cuda(ordinal) = device else { return Ok(()) };
        let unusable = |why: String| Err(Failure::new(ErrorCode::DeviceUnusable, format!("{device}: {why}")));
        let Some(cuda) = &self.cuda else { return unusable("this ballast was built without CUDA".into()) };
        if let Some(missing) = cuda.missing.iter().find(|missing| !missing.for_several_workers) {
            return unusable(format!("{} is not found: {}", missing.library, missing.remedy));
        }
        if let Some(failure) = &cuda.failure {
            return unusable(failure.clone());
        }
        let ordinal = Device::ordinal(ordinal, cuda.devices.len(), |name| std::env::var(name).ok())?;
        match cuda.devices.get(ordinal) {
            None => unusable(format!("there is no device {ordinal}; the driver finds {}", cuda.devices.len())),
            Some(CudaDevice { kernels: None, capability, .. }) => {
                unusable(format!("no kernel fits its compute capability {capability}; 8.0 or later is needed"))
            }
            Some(_) => Ok(()),
        }
    }
}

#[cfg(feature = "cuda")]
fn look_for_cuda() -> Option<Cuda> {
    use ballast_kernels::cuda::{Library, kernels_for, probe};
    let probe = probe();
    let version = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    let device = |device: ballast_kernels::cuda::DeviceProbe| CudaDevice {
        kernels: kernels_for(device.capability),
        capability: version(device.capability),
        name: device.name,
        memory: device.memory,
    };
    let missing = |library: Library| Missing {
        library: library.file(),
        remedy: library.remedy(),
        for_several_workers: library == Library::Nccl,
    };
    Some(Cuda {
        driver: probe.driver.map(version),
        devices: probe.devices.into_iter().map(device).collect(),
        cublaslt: probe.cublaslt,
        nccl: probe.nccl,
        missing: probe.missing.into_iter().map(missing).collect(),
        failure: probe.failure,
    })
}

#[cfg(not(feature = "cuda"))]
fn look_for_cuda() -> Option<Cuda> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cuda: Option<Cuda>) -> Machine {
        Machine { cpu: Cpu { cores: 2, arithmetic: "cpu f32".into() }, cuda }
    }

    fn cuda() -> Cuda {
        let device = CudaDevice {
            name: "A100".into(),
            capability: "8.0".into(),
            memory: 80 << 30,
            kernels: Some("cubin sm_80".into()),
        };
        let (driver, devices) = (Some("13.0".into()), vec![device]);
        Cuda { driver, devices, cublaslt: Some(130_000), nccl: None, missing: Vec::new(), failure: None }
    }

    fn missing(library: &'static str, for_several_workers: bool) -> Missing {
        Missing { library, remedy: "install it", for_several_workers }
    }

    fn why(cuda: Option<Cuda>, device: Device) -> String {
        let failure = machine(cuda).usable(device).unwrap_err();
        assert_eq!(failure.code, ErrorCode::DeviceUnusable);
        failure.message
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let first = Device::Cuda(Some(0));
        assert!(machine(None).usable(Device::Cpu).is_ok() && machine(Some(cuda())).usable(first).is_ok());
        assert!(why(None, first).contains("built without CUDA"));
        assert!(why(Some(cuda()), Device::Cuda(Some(1))).contains("the driver finds 1"));
        let without = |library, several| Cuda { missing: vec![missing(library, several)], ..cuda() };
        assert!(why(Some(without("libcublasLt.so.13", false)), first).contains("libcublasLt.so.13 is not found"));
        assert!(machine(Some(without("libnccl.so", true))).usable(first).is_ok());
        let old = CudaDevice { kernels: None, capability: "7.5".into(), ..cuda().devices[0].clone() };
        assert!(why(Some(Cuda { devices: vec![old], ..cuda() }), first).contains("7.5"));
        let failed = Cuda { failure: Some("no CUDA-capable device is detected".into()), ..cuda() };
        assert!(why(Some(failed), first).contains("is detected"));
    }
}
