//! What a worker computes on.

use ballast_kernels::Storage;
use ballast_proto::v1;
use ballast_proto::{ErrorCode, Failure};
use std::fmt;
use std::str::FromStr;

/// A device, as `--device` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// `cpu`.
    Cpu,
    /// `cuda:N`; with `cuda` alone, that of this process's number on its machine.
    Cuda(Option<usize>),
}

/// Where launchers tell a process its number on its machine: torchrun and Kubeflow, Slurm, Open MPI, Intel MPI and MPICH.
const LOCAL_RANK: [&str; 4] = ["LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"];

impl Device {
    /// The device of a run whose workers are told none.
    #[must_use]
    pub fn of_run(device: v1::Device) -> Self {
        match device {
            v1::Device::Cuda => Self::Cuda(None),
            v1::Device::Cpu | v1::Device::Unspecified => Self::Cpu,
        }
    }

    /// The ordinal of a CUDA device: its own, or this process's number on its machine as the launcher told it in
    /// `variable`; 0 where no launcher tells one, and where the launcher lets the process see one device alone.
    ///
    /// # Errors
    /// When what the launcher told is no number.
    pub(crate) fn ordinal(
        own: Option<usize>,
        visible: usize,
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<usize, Failure> {
        if let Some(ordinal) = own {
            return Ok(ordinal);
        }
        if visible == 1 {
            return Ok(0);
        }
        let told = LOCAL_RANK.into_iter().find_map(|name| Some((name, variable(name)?)));
        let Some((name, value)) = told else { return Ok(0) };
        value.parse().map_err(|_| {
            let message = format!("{name} = {value:?} is no number of a device: name one with --device cuda:N");
            Failure::new(ErrorCode::RunFileBadValue, message)
        })
    }
}

/// The storage type that the run asks for.
pub(crate) fn storage(run: &v1::RunSpec) -> Result<Storage, crate::WorkerError> {
    match run.dtype() {
        v1::Dtype::F32 => Ok(Storage::F32),
        v1::Dtype::Bf16 => Ok(Storage::Bf16),
        v1::Dtype::Unspecified => Err(crate::WorkerError::RunSpec("dtype is of a kind unknown to this worker".into())),
    }
}

/// What a build without CUDA says of a device of that kind.
#[cfg(not(feature = "cuda"))]
pub(crate) fn without_cuda() -> Failure {
    let message = "this ballast was built without CUDA: build it with `make cuda` and `cargo build --release -p \
                   ballast-cli --features cuda`, or work with --device cpu";
    Failure::new(ErrorCode::DeviceUnusable, message)
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(None)),
            Some(("cuda", ordinal)) => {
                let ordinal = ordinal.parse().map_err(|_| format!("{ordinal:?} is no number of a device"))?;
                Ok(Self::Cuda(Some(ordinal)))
            }
            _ => Err("write cpu, cuda or cuda:N".to_owned()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(ordinal)) => write!(f, "cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [Device::Cpu, Device::Cuda(None), Device::Cuda(Some(3))] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_launcher_tells_the_device() {
        let slurm = |name| (name == "SLURM_LOCALID").then(|| "5".to_owned());
        assert_eq!(Device::ordinal(None, 8, slurm).unwrap(), 5);
        assert_eq!(Device::ordinal(None, 1, slurm).unwrap(), 0);
        assert_eq!(Device::ordinal(Some(2), 1, slurm).unwrap(), 2);
        assert_eq!(Device::ordinal(None, 8, |_| None).unwrap(), 0);
        let failure = Device::ordinal(None, 8, |name| (name == "LOCAL_RANK").then(|| "first".to_owned())).unwrap_err();
        assert!(failure.message.contains("LOCAL_RANK") && failure.message.contains("first"), "{failure}");
    }
}
