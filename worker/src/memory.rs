//! What a run takes of a device's memory, before it is started.
//!
//! There is no formula: the decoder itself is run on a backend that only counts ([`DryRun`]), with the largest
//! micro-batch of the run. So the estimate changes with the code that it is of.

use crate::WorkerError;
use crate::device::Device;
use crate::lora::{Adapter, DropoutKey, LoraLayout};
use crate::model::{Batch, Decoder, Keep, Pass, Rows};
use crate::objective::sft;
use crate::progress::Progress;
use crate::state::TrainingState;
use crate::sums::StepSums;
use ballast_basemodel::Architecture;
use ballast_kernels::cpu::CpuFootprint;
use ballast_kernels::dry_run::DryRun;
use ballast_kernels::{Backend, Footprint, KernelError, PackedLayout};
use ballast_proto::v1::{Reduction, RunSpec};
use std::fmt;
use std::sync::Arc;

/// The largest micro-batch of a run, as far as it matters to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatchSize {
    /// Tokens, at most.
    pub tokens: usize,
    /// Tokens that bear loss, at most; as many as tokens where that is not known.
    pub rows: usize,
    /// What is kept of each layer.
    pub keep: Keep,
}

/// Bytes of a run, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Frozen weights, norms and rotary tables.
    pub weights: usize,
    /// Adapter, moments, gradient and integer sums.
    pub adapter: usize,
    /// Held by the backend itself.
    pub workspace: usize,
    /// Activations that wait for the backward pass, when the forward pass has ended, and tables beside them.
    pub kept: usize,
    /// What forward pass, output head or backward pass have beyond that, whichever has most.
    pub transient: usize,
    /// Room between buffers in the slab that activations lie in.
    pub gaps: usize,
    /// Copies of the training state that wait for their upload as a checkpoint, and the files made of one: in host memory.
    pub copies: usize,
    /// Code, runtime and stacks, beside all else that the process has in host memory.
    pub program: usize,
    /// What it was estimated for.
    pub micro_batch: MicroBatchSize,
    /// Whether `model.dtype` can be narrower.
    narrower: bool,
}

/// Copies of the training state in host memory when a checkpoint is made: the copy, and the files made of it. A second copy exists
/// only where checkpoints come faster than they leave.
const COPIES: usize = 2;
/// Code, the async runtime, stacks and heap of a worker that has loaded nothing yet, about.
const PROGRAM: usize = 24 << 20;

/// Vectors of a copied state: parameters and both moments.
const MOMENTS_AND_PARAMETERS: usize = 3;

/// Share of the slab that is added for micro-batches that are smaller but fit less well.
const MARGIN: usize = 32;

/// What a run takes on a device that need not be there; on the CPU, with so many threads.
///
/// # Errors
/// [`WorkerError::RunSpec`] for a run that cannot be trained, and where this `ballast` was built without CUDA for a device of
/// that kind, [`ErrorCode::DeviceUnusable`].
pub fn of_run(
    run: &RunSpec,
    architecture: &Architecture,
    device: Device,
    threads: usize,
) -> Result<MemoryEstimate, WorkerError> {
    match device {
        Device::Cpu => estimate_run(CpuFootprint { threads, weights: crate::device::storage(run)? }, architecture, run),
        Device::Cuda(_) => on_cuda(run, architecture),
    }
}

#[cfg(feature = "cuda")]
fn on_cuda(run: &RunSpec, architecture: &Architecture) -> Result<MemoryEstimate, WorkerError> {
    let storage = crate::device::storage(run)?;
    estimate_run(ballast_kernels::cuda::CudaFootprint { storage }, architecture, run)
}

#[cfg(not(feature = "cuda"))]
fn on_cuda(_: &RunSpec, _: &Architecture) -> Result<MemoryEstimate, WorkerError> {
    Err(crate::device::without_cuda().into())
}

/// What a run takes on a backend of these sizes.
pub(crate) fn estimate_run<F: Footprint>(
    footprint: F,
    architecture: &Architecture,
    run: &RunSpec,
) -> Result<MemoryEstimate, WorkerError> {
    let lora = run.lora.as_ref().ok_or_else(|| WorkerError::RunSpec("lora is missing".into()))?;
    let layout = LoraLayout::new(architecture, lora)?;
    let tokens = usize::try_from(run.largest_micro_batch_tokens).unwrap_or(usize::MAX);
    let keep = if run.activation_checkpointing { Keep::Inputs } else { Keep::Everything };
    estimate(footprint, architecture, &layout, MicroBatchSize { tokens, rows: tokens, keep })
}

/// What a run takes with this adapter on a backend of these sizes.
///
/// # Errors
/// [`WorkerError::Kernel`] when the sizes exceed the address space.
pub fn estimate<F: Footprint>(
    footprint: F,
    architecture: &Architecture,
    layout: &LoraLayout,
    micro_batch: MicroBatchSize,
) -> Result<MemoryEstimate, WorkerError> {
    let narrower = footprint.has_narrower();
    let backend = Arc::new(DryRun::new(footprint)?);
    let workspace = backend.extent().in_use;
    // Zeros cost no memory until they are touched, and nobody does.
    let zeros = |_: &str, shape: &[usize]| Ok(vec![0.0; shape.iter().product()]);
    let decoder = Decoder::from_weights(&backend, architecture, &zeros)?;
    let weights = backend.extent().in_use - workspace;
    let (parameters, tensors) = (layout.parameters(), layout.tensors().len());
    let state = TrainingState::fresh(&*backend, layout, 0)?;
    // What exact sums take is not less than what fast ones do.
    let _sums = StepSums::new(&*backend, Reduction::Exact, layout)?;
    let mut gradient = backend.reals(parameters)?;
    let resident = backend.extent().in_use;
    backend.reserve();
    let segments = backend.footprint().segments(parameters, tensors);
    let _segments = backend.hold(segments)?;
    let adapter = Adapter { layout, parameters: &state.parameters, dropout: Some(DropoutKey { seed: 0, step: 1 }) };
    let kept = forward_backward(&decoder, &adapter, &mut gradient, micro_batch)? - resident;
    let extent = backend.extent();
    let activations = extent.peak - resident;
    Ok(MemoryEstimate {
        weights,
        adapter: resident - weights - workspace,
        workspace,
        kept,
        transient: activations - kept,
        gaps: extent.slab.saturating_sub(activations) + extent.slab / MARGIN,
        copies: COPIES * MOMENTS_AND_PARAMETERS * parameters * size_of::<f32>(),
        program: PROGRAM,
        micro_batch,
        narrower,
    })
}

/// One micro-batch, as the trainer does it. Returns the bytes in use between forward and backward pass.
fn forward_backward<F: Footprint>(
    decoder: &Decoder<DryRun<F>>,
    adapter: &Adapter<'_, DryRun<F>>,
    gradient: &mut <DryRun<F> as Backend>::Reals,
    micro_batch: MicroBatchSize,
) -> Result<usize, WorkerError> {
    let backend = &**decoder.backend();
    let MicroBatchSize { tokens, rows, keep } = micro_batch;
    let (tokens, rows) = (tokens.max(1), rows.clamp(1, tokens.max(1)));
    let packed = PackedLayout::new(&[u32::try_from(tokens).unwrap_or(u32::MAX)], &[0]);
    let batch = Batch::new(backend, &vec![0; tokens], &packed)?;
    let scored = Rows::new(backend, &vec![0; rows])?;
    let progress = Progress::new();
    let pass = Pass { batch: &batch, adapter: Some(adapter), progress: &progress };
    let (hidden, tape) = decoder.forward(&pass, &scored, keep)?;
    let in_use = backend.extent().in_use;
    let (_, d_hidden) = sft::loss_and_gradient(decoder, &hidden, &vec![0; rows])?;
    decoder.backward(&d_hidden, &pass, &scored, tape, gradient, &mut |_, _| Ok(()))?;
    Ok(in_use)
}

impl MemoryEstimate {
    /// Bytes of the slab that activations lie in: what a backend is to reserve.
    #[must_use]
    pub fn activations(&self) -> usize {
        self.kept + self.transient + self.gaps
    }

    /// Most bytes in use at once.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.weights + self.adapter + self.workspace + self.kept + self.transient
    }

    /// Bytes taken from the device.
    #[must_use]
    pub fn total(&self) -> usize {
        self.peak() + self.gaps
    }

    /// Bytes of a worker's process whose device is its host: all of the above.
    #[must_use]
    pub fn process(&self) -> usize {
        self.total() + self.copies + self.program
    }

    /// Whether a device with `available` bytes can hold the run. To be asked before anything is loaded.
    ///
    /// # Errors
    /// [`WorkerError::OutOfMemory`], which names estimate, what is available, and what to change.
    pub fn check(&self, available: usize) -> Result<(), WorkerError> {
        if self.total() <= available {
            return Ok(());
        }
        Err(self.out_of_memory(format!("{} are free", Size(available))))
    }

    /// An error met in training, told with the estimate where the device was out of memory.
    #[must_use]
    pub fn told(&self, error: WorkerError) -> WorkerError {
        match error {
            WorkerError::Kernel(KernelError::OutOfMemory { requested, what }) => {
                self.out_of_memory(format!("{} wanted for {what}", Size(requested)))
            }
            other => other,
        }
    }

    fn out_of_memory(&self, shortage: String) -> WorkerError {
        WorkerError::OutOfMemory { shortage, estimate: self.to_string(), remedies: self.remedies() }
    }

    fn remedies(&self) -> String {
        let mut remedies = vec!["lower train.micro_batch_tokens or lora.rank"];
        if self.micro_batch.keep == Keep::Everything {
            remedies.push("set train.activation_checkpointing = true");
        }
        if self.narrower {
            remedies.push("set model.dtype = \"bf16\"");
        }
        remedies.join(", or ")
    }
}

/// One line for a person.
impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights, adapter, workspace, kept, transient, gaps, micro_batch, .. } = *self;
        write!(
            f,
            "{} (frozen weights {}, adapter and optimizer {}, workspace {}; for {} tokens at a time: \
             activations kept {}, most beyond them {}, room between them {})",
            Size(self.total()),
            Size(weights),
            Size(adapter),
            Size(workspace),
            micro_batch.tokens,
            Size(kept),
            Size(transient),
            Size(gaps),
        )
    }
}

/// Bytes as MiB or GiB, for people.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0 as f64 / f64::from(1 << 20);
        if mib < 1024.0 { write!(f, "{mib:.1} MiB") } else { write!(f, "{:.2} GiB", mib / 1024.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_proto::{Coded, ErrorCode};

    fn estimate() -> MemoryEstimate {
        MemoryEstimate {
            weights: 3 << 30,
            adapter: 100 << 20,
            workspace: 32 << 20,
            kept: 2 << 30,
            transient: 512 << 20,
            gaps: 12 << 20,
            copies: 60 << 20,
            program: 20 << 20,
            micro_batch: MicroBatchSize { tokens: 4096, rows: 1000, keep: Keep::Everything },
            narrower: true,
        }
    }

    #[test]
    fn the_kinds_add_up_and_are_told() {
        let estimate = estimate();
        assert_eq!(estimate.total(), (5 << 30) + (656 << 20));
        assert_eq!(estimate.process() - estimate.total(), 80 << 20);
        assert_eq!(estimate.activations(), (2 << 30) + (524 << 20));
        assert_eq!(
            estimate.to_string(),
            "5.64 GiB (frozen weights 3.00 GiB, adapter and optimizer 100.0 MiB, workspace 32.0 MiB; \
             for 4096 tokens at a time: activations kept 2.00 GiB, most beyond them 512.0 MiB, room between them 12.0 MiB)"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_to_change() {
        let estimate = estimate();
        assert!(estimate.check(estimate.total()).is_ok());
        let error = estimate.check(estimate.total() - 1).unwrap_err();
        assert_eq!(error.code(), ErrorCode::OutOfMemory);
        let told = error.to_string();
        for part in [
            "out of memory: 5.64 GiB are free; the run takes about 5.64 GiB (frozen",
            "lower train.micro_batch_tokens or lora.rank",
            "set train.activation_checkpointing = true",
            "set model.dtype = \"bf16\"",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn only_what_can_be_changed_is_advised() {
        let micro_batch = MicroBatchSize { keep: Keep::Inputs, ..estimate().micro_batch };
        let told = MemoryEstimate { micro_batch, narrower: false, ..estimate() }.check(0).unwrap_err().to_string();
        assert!(told.ends_with("; lower train.micro_batch_tokens or lora.rank"), "{told}");
    }

    #[test]
    fn running_out_of_memory_is_told_with_the_estimate_and_nothing_else_is() {
        let met = WorkerError::Kernel(KernelError::OutOfMemory { requested: 3 << 20, what: "activations" });
        let told = estimate().told(met);
        assert_eq!(told.code(), ErrorCode::OutOfMemory);
        let text = told.to_string();
        assert!(text.starts_with("out of memory: 3.0 MiB wanted for activations; the run takes about 5.64"), "{text}");
        let other = estimate().told(WorkerError::Internal("a defect".into()));
        assert_eq!(other.to_string(), "internal: a defect");
    }
}
