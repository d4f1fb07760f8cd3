//! The communicator's stream, and the events that order it and the backend's.

use super::super::device::{Device, failed};
use crate::KernelError;
use cudarc::driver::sys::CUstream;
use cudarc::driver::{CudaEvent, CudaStream, DriverError};
use std::sync::Arc;

type Result<T> = std::result::Result<T, KernelError>;

/// A place in a stream.
#[derive(Clone, Debug)]
pub(super) struct Mark(Arc<CudaEvent>);

impl Mark {
    /// Whether the stream has come there. Never waits. The device's context is current.
    pub(super) fn is_passed(&self) -> Result<bool> {
        self.0.try_is_complete().map_err(failed("a collective"))
    }
}

/// A stream for collectives, beside the backend's.
#[derive(Debug)]
pub(super) struct CommunicationStream {
    stream: Arc<CudaStream>,
    device: Arc<Device>,
}

impl CommunicationStream {
    pub(super) fn new(device: Arc<Device>) -> Result<Self> {
        let stream = device.new_stream().map_err(failed("making a stream for collectives"))?;
        Ok(Self { stream, device })
    }

    /// Makes the device's context the calling thread's.
    pub(super) fn bind(&self) -> Result<()> {
        self.device.bind()
    }

    /// What is enqueued from here on waits for all that the backend has enqueued so far.
    pub(super) fn follow_backend(&self) -> Result<()> {
        self.device.record().and_then(|event| self.stream.wait(&event)).map_err(ordering())
    }

    /// Marks the end of what is enqueued so far.
    pub(super) fn mark(&self) -> Result<Mark> {
        self.stream.record_event(None).map(|event| Mark(Arc::new(event))).map_err(ordering())
    }

    pub(super) fn handle(&self) -> CUstream {
        self.stream.cu_stream()
    }
}

fn ordering() -> impl FnOnce(DriverError) -> KernelError {
    failed("ordering a collective")
}
