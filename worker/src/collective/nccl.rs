//! NCCL between CUDA devices.

use super::{AbortHandle, CollectiveError, DeviceCollective};
use crate::WorkerError;
use crate::progress::Progress;
use ballast_kernels::Backend;
use ballast_kernels::cpu::CpuBackend;
use ballast_proto::CommunicatorSecret;
use std::sync::Arc;
use std::time::Duration;

/// One rank's place in the communicator of a generation.
#[derive(Debug)]
pub struct NcclPlace {
    /// The secret by which the ranks meet, as it was made on rank 0.
    pub id: CommunicatorSecret,
    /// This process's position.
    pub rank: usize,
    /// Ranks in the generation.
    pub world_size: usize,
    /// Longest time for the meeting, and for one reduction, waiting for slower ranks included.
    pub timeout: Duration,
    /// Ends it.
    pub abort: AbortHandle,
    /// Ticked when a reduction is over.
    pub progress: Progress,
}

/// A backend, and how its ranks meet over NCCL if they can.
pub(crate) trait NcclDevice: Backend {
    /// A new secret.
    ///
    /// # Errors
    /// When NCCL cannot be had.
    fn communicator_id() -> Result<CommunicatorSecret, WorkerError>;

    /// Meets the other ranks.
    ///
    /// # Errors
    /// When they are not met in time, the generation was aborted, or NCCL fails.
    fn connect(backend: &Arc<Self>, place: NcclPlace) -> Result<Box<dyn DeviceCollective<Self>>, WorkerError>;
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{Arc, CommunicatorSecret, NcclDevice, NcclPlace};
    use crate::WorkerError;
    use crate::collective::{AbortHandle, CollectiveError, DeviceCollective, Operand, Reductions};
    use crate::progress::Progress;
    use ballast_kernels::Backend as _;
    use ballast_kernels::cuda::CudaBackend;
    use ballast_kernels::cuda::nccl::{
        Batch, Communicator, CommunicatorAbort, CommunicatorError, CommunicatorId, Member, Reduction,
    };
    use bytes::Bytes;

    /// The ranks of a generation, over NCCL.
    struct NcclRanks {
        communicator: Communicator,
        abort: AbortHandle,
        progress: Progress,
    }

    impl NcclDevice for CudaBackend {
        fn communicator_id() -> Result<CommunicatorSecret, WorkerError> {
            Ok(Bytes::copy_from_slice(&CommunicatorId::new().map_err(failed)?.to_bytes()).into())
        }

        fn connect(backend: &Arc<Self>, place: NcclPlace) -> Result<Box<dyn DeviceCollective<Self>>, WorkerError> {
            let NcclPlace { id, rank, world_size, timeout, abort, progress } = place;
            let id = CommunicatorId::try_from(id.reveal()).map_err(failed)?;
            let communicator_abort = CommunicatorAbort::new();
            abort.on_abort({
                let communicator_abort = communicator_abort.clone();
                move |reason| communicator_abort.abort(reason)
            });
            let member = Member { rank, world_size };
            let mut communicator =
                Communicator::new(backend, &id, member, timeout, &communicator_abort).map_err(failed)?;
            progress.tick();
            // NCCL makes its connections with the first collective, which therefore waits for all ranks. That is to be here,
            // where everybody waits, and not in the midst of a step that others have not begun.
            let mut nothing = backend.integers(1)?;
            communicator.all_reduce(Reduction::sum(&mut nothing), || progress.tick()).map_err(failed)?;
            Ok(Box::new(NcclRanks { communicator, abort, progress }))
        }
    }

    impl DeviceCollective<CudaBackend> for NcclRanks {
        fn begin<'a>(&'a mut self, _: &'a CudaBackend) -> Box<dyn Reductions<'a, CudaBackend> + 'a> {
            Box::new(UnderWay { batch: self.communicator.batch(), abort: &self.abort, progress: &self.progress })
        }
    }

    /// Reductions on the communicator's stream, beside what the backend computes.
    struct UnderWay<'a> {
        batch: Batch<'a>,
        abort: &'a AbortHandle,
        progress: &'a Progress,
    }

    impl<'a> Reductions<'a, CudaBackend> for UnderWay<'a> {
        fn enqueue(&mut self, operand: Operand<'a, CudaBackend>) -> Result<(), WorkerError> {
            let reduction = match operand {
                Operand::Sum(values) => Reduction::sum(values),
                Operand::Max(values) => Reduction::max(values),
                Operand::SumReals(values) => Reduction::sum_reals(values),
                Operand::SumHalves(values) => Reduction::sum_halves(values),
            };
            self.batch.enqueue(reduction.in_pieces_of(PIECE)).map_err(failed)
        }

        fn wanted(&self) -> Result<(), WorkerError> {
            Ok(self.abort.check()?)
        }

        fn wait(self: Box<Self>) -> Result<(), WorkerError> {
            let Self { batch, progress, .. } = *self;
            batch.wait(|| progress.tick()).map_err(failed)
        }
    }

    /// Elements of one collective: enough to keep NCCL busy, few enough that a long reduction shows its progress.
    const PIECE: usize = 1 << 24;

    fn failed(error: CommunicatorError) -> WorkerError {
        match error {
            CommunicatorError::Aborted { reason, .. } => CollectiveError::Aborted(reason).into(),
            CommunicatorError::Device { source, .. } => source.into(),
            CommunicatorError::Broken { .. } => CollectiveError::Broken.into(),
            other => CollectiveError::Nccl(other.to_string()).into(),
        }
    }
}

impl NcclDevice for CpuBackend {
    fn communicator_id() -> Result<CommunicatorSecret, WorkerError> {
        Err(cpu().into())
    }

    fn connect(_: &Arc<Self>, _: NcclPlace) -> Result<Box<dyn DeviceCollective<Self>>, WorkerError> {
        Err(cpu().into())
    }
}

fn cpu() -> CollectiveError {
    CollectiveError::Setup("NCCL joins CUDA devices, and this worker computes on the CPU".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_does_not_show_its_secret() {
        let id = CommunicatorSecret::from(bytes::Bytes::from_static(&[b'S'; 128]));
        let (timeout, abort, progress) = (Duration::from_secs(1), AbortHandle::new(), Progress::new());
        let place = NcclPlace { id, rank: 1, world_size: 2, timeout, abort, progress };
        let shown = format!("{place:?}");
        assert!(shown.contains("world_size: 2") && !shown.contains("SS") && !shown.contains("83"), "{shown}");
    }
}
