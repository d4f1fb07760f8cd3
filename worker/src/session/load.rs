//! The base model of a run onto this worker's device.

use super::engine::{Engine, TrainerEngine};
use crate::WorkerError;
use crate::collective::NcclDevice;
use crate::device::Device;
use crate::memory::{self, MemoryEstimate};
use crate::model::Decoder;
use crate::progress::Progress;
use crate::trainer::Trainer;
use ballast_basemodel::{BaseModel, ModelSource};
use ballast_kernels::cpu::{CpuBackend, CpuFootprint};
use ballast_kernels::{Footprint, KernelError};
use ballast_proto::v1::{NumericsFingerprint, RunSpec};
use ballast_proto::{ErrorCode, Failure};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::net::TcpListener;
use std::sync::Arc;

/// Makes the engine of a run, on the compute thread.
#[cfg_attr(not(feature = "simulation"), expect(unreachable_pub, reason = "only simulations bring one"))]
pub type Loader = Box<dyn FnOnce(&RunSpec, &Progress) -> Result<Box<dyn Engine>, WorkerError> + Send>;

/// What a worker is told on its command line about how it computes; where it is told nothing, the run says.
pub(super) struct Wishes {
    /// Where it has the base model.
    pub(super) model: Option<String>,
    /// What it computes on.
    pub(super) device: Option<Device>,
    /// Threads of the CPU.
    pub(super) threads: Option<usize>,
    /// Whether it may be reached from beyond its own machine.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only NCCL listens by itself"))]
    pub(super) insecure: bool,
}

/// Loads the run's base model onto the device. `listener` is where neighbours in a ring will find this worker.
pub(super) fn load(
    run: &RunSpec,
    wishes: &Wishes,
    listener: TcpListener,
    progress: &Progress,
) -> Result<Box<dyn Engine>, WorkerError> {
    match wishes.device.unwrap_or_else(|| Device::of_run(run.device())) {
        Device::Cpu => {
            let threads = wishes.threads.unwrap_or(run.threads as usize);
            let backend = CpuBackend::with_weights(threads, crate::device::storage(run)?)?;
            engine(Arc::new(backend), run, wishes, listener, progress)
        }
        Device::Cuda(ordinal) => on_cuda(ordinal, run, wishes, listener, progress),
    }
}

#[cfg(feature = "cuda")]
fn on_cuda(
    ordinal: Option<usize>,
    run: &RunSpec,
    wishes: &Wishes,
    listener: TcpListener,
    progress: &Progress,
) -> Result<Box<dyn Engine>, WorkerError> {
    use ballast_kernels::cuda::{CudaBackend, nccl, probe};
    let ordinal = Device::ordinal(ordinal, probe().devices.len(), |name| std::env::var(name).ok())?;
    let storage = crate::device::storage(run)?;
    let backend = CudaBackend::new(ordinal, storage)?;
    // Better now than when the others wait.
    if run.workers > 1 && run.collective() != ballast_proto::v1::Collective::Tcp {
        nccl::require()?;
        reachable_by_nccl(wishes.insecure, std::env::var(NCCL_INTERFACE).ok().as_deref())?;
    }
    engine(Arc::new(backend), run, wishes, listener, progress)
}

/// Which network interfaces NCCL uses, by the beginning of their names, or exactly with a `=` in front.
#[cfg(any(test, feature = "cuda"))]
const NCCL_INTERFACE: &str = "NCCL_SOCKET_IFNAME";

/// NCCL listens where it likes, in the clear: beyond this machine only when that is wanted, as for all else that listens.
#[cfg(any(test, feature = "cuda"))]
fn reachable_by_nccl(insecure: bool, interface: Option<&str>) -> Result<(), Failure> {
    if insecure || matches!(interface, Some("lo" | "=lo")) {
        return Ok(());
    }
    let message = format!(
        "NCCL listens beyond loopback, without TLS and tokens: set {NCCL_INTERFACE}=lo where all workers share a machine, \
         or add --insecure in a network you trust"
    );
    Err(Failure::new(ErrorCode::InsecureBind, message))
}

#[cfg(not(feature = "cuda"))]
fn on_cuda(
    _: Option<usize>,
    _: &RunSpec,
    _: &Wishes,
    _: TcpListener,
    _: &Progress,
) -> Result<Box<dyn Engine>, WorkerError> {
    Err(crate::device::without_cuda().into())
}

/// A backend, and what of its memory can be planned.
trait Planned: NcclDevice {
    /// Its sizes.
    type Sizes: Footprint;

    fn sizes(&self) -> Self::Sizes;

    /// Bytes that are free; `None` where memory is shared with everything else.
    fn free_memory(&self) -> Result<Option<usize>, KernelError>;

    /// Takes the memory of activations, once all that stays is loaded.
    fn reserve_memory(&self, bytes: usize) -> Result<(), KernelError>;
}

impl Planned for CpuBackend {
    type Sizes = CpuFootprint;

    fn sizes(&self) -> CpuFootprint {
        self.footprint()
    }

    fn free_memory(&self) -> Result<Option<usize>, KernelError> {
        Ok(None)
    }

    fn reserve_memory(&self, bytes: usize) -> Result<(), KernelError> {
        self.reserve(bytes)
    }
}

#[cfg(feature = "cuda")]
impl Planned for ballast_kernels::cuda::CudaBackend {
    type Sizes = ballast_kernels::cuda::CudaFootprint;

    fn sizes(&self) -> Self::Sizes {
        self.footprint()
    }

    fn free_memory(&self) -> Result<Option<usize>, KernelError> {
        Ok(Some(self.device_memory()?.0))
    }

    fn reserve_memory(&self, bytes: usize) -> Result<(), KernelError> {
        self.reserve(bytes)
    }
}

/// Device memory that nobody plans: kernels as they are loaded, and the rest of the pages of weights.
const UNPLANNED: usize = 64 << 20;
/// What NCCL takes for its channels, about.
const NCCL_BUFFERS: usize = 256 << 20;

/// What the run takes of the device's memory, told and refused before anything is loaded.
fn plan_memory<B: Planned>(backend: &B, model: &BaseModel, run: &RunSpec) -> Result<MemoryEstimate, WorkerError> {
    let planned = memory::estimate_run(backend.sizes(), model.architecture(), run)?;
    tracing::info!("memory: about {planned}");
    if let Some(free) = backend.free_memory()? {
        let others = UNPLANNED + if run.workers > 1 { NCCL_BUFFERS } else { 0 };
        // The workspace is taken already.
        planned.check((free + planned.workspace).saturating_sub(others))?;
    }
    Ok(planned)
}

fn engine<B: Planned>(
    backend: Arc<B>,
    run: &RunSpec,
    wishes: &Wishes,
    listener: TcpListener,
    progress: &Progress,
) -> Result<Box<dyn Engine>, WorkerError> {
    let model = base_model(run, wishes.model.as_deref())?;
    let planned = plan_memory(&*backend, &model, run)?;
    let decoder = Arc::new(Decoder::load(&backend, &model).map_err(|error| planned.told(error))?);
    let fingerprint = NumericsFingerprint {
        binary_sha256: binary_sha256()?,
        backend: backend.name().into(),
        arithmetic: backend.arithmetic()?,
        weights_sha256: model.sha256()?,
    };
    let trainer = Trainer::new(Arc::clone(&backend), decoder, run, progress.clone());
    let trainer = trainer.map_err(|error| planned.told(error))?;
    backend.reserve_memory(planned.activations()).map_err(|error| planned.told(error.into()))?;
    Ok(Box::new(TrainerEngine { trainer, backend, listener, fingerprint, planned, collective: None }))
}

/// The run's base model, from `override_source` if this worker has it elsewhere.
fn base_model(run: &RunSpec, override_source: Option<&str>) -> Result<BaseModel, WorkerError> {
    let expected = run.base_model.as_ref().ok_or_else(|| WorkerError::RunSpec("base_model is missing".into()))?;
    let revision = Some(expected.revision.as_str()).filter(|revision| !revision.is_empty());
    let source = match override_source {
        Some(source) => ModelSource::parse(source, None)?,
        None => ModelSource::parse(&expected.source, revision)?,
    };
    let model = source.fetch()?;
    let sha256 = model.sha256()?;
    if sha256 == expected.sha256 {
        return Ok(model);
    }
    Err(Failure::new(
        ErrorCode::ModelMismatch,
        format!(
            "the base model at {} has sha256 {sha256}, the run's has {}: give this worker the same files (--model)",
            override_source.unwrap_or(&expected.source),
            expected.sha256
        ),
    )
    .into())
}

/// SHA-256 (hex) of the running binary.
fn binary_sha256() -> Result<String, WorkerError> {
    let hash = || {
        let mut hasher = Sha256::new();
        std::io::copy(&mut File::open(std::env::current_exe()?)?, &mut hasher)?;
        Ok::<_, std::io::Error>(hex::encode(hasher.finalize()))
    };
    hash().map_err(|e| WorkerError::Internal(format!("the binary cannot hash itself: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_stays_on_its_machine_unless_it_may_leave() {
        for (insecure, interface, allowed) in [
            (false, None, false),
            (false, Some("eth0"), false),
            (false, Some("lo"), true),
            (false, Some("=lo"), true),
            (true, None, true),
        ] {
            let outcome = reachable_by_nccl(insecure, interface);
            assert_eq!(outcome.is_ok(), allowed, "{insecure} {interface:?}");
            assert!(outcome.is_ok() || outcome.unwrap_err().code == ErrorCode::InsecureBind);
        }
    }
}
