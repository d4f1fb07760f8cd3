//! NCCL's functions, each checked once, with what NCCL says of a failure as text.
//!
//! A communicator is made non-blocking: no call but [`Raw::abort`] and [`Raw::destroy`] waits for another rank or for
//! the device. NCCL does the work on a thread of its own, and [`Raw::progress`] tells when it is done. Until then no
//! other function may be called but that one and [`Raw::abort`], and nothing may be enqueued on the stream.

use super::super::libraries::Library;
use super::error::CommunicatorError;
use crate::KernelError;
use cudarc::driver::sys::CUstream;
use cudarc::nccl::sys::{self, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// The first version with non-blocking communicators and `ncclCommFinalize`, as `ncclGetVersion` counts.
const OLDEST: c_int = 2_14_00;
/// The version whose `ncclConfig_t` the bindings have. A newer library takes the fields that came later for undefined,
/// an older one does not look at those that it does not know.
const CONFIG_VERSION: u32 = 2_30_00;
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// A field of the configuration that is left to NCCL.
const UNDEFINED: c_int = c_int::MIN;

/// Whether what a call began is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Underway,
}

/// What NCCL says of a failure.
pub(super) type Words = String;

/// An in-place all-reduce of device memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    /// Device address of the first element.
    pub(super) address: u64,
    /// Elements.
    pub(super) count: usize,
    pub(super) data: ncclDataType_t,
    pub(super) reduction: ncclRedOp_t,
}

/// NCCL's communicator. It is ended by [`Raw::abort`] or [`Raw::destroy`], which take it, and so at most once.
#[derive(Debug)]
pub(super) struct Raw(ncclComm_t);

// SAFETY: NCCL lets any thread use a communicator, one at a time; `Slot`'s lock sees to that.
unsafe impl Send for Raw {}

/// NCCL's version, as its library counts it.
///
/// # Errors
/// [`KernelError::Unusable`], with what to do, when the library is missing or does not tell.
pub(in super::super) fn version() -> Result<c_int, KernelError> {
    Library::Nccl.require()?;
    let mut version = 0;
    // SAFETY: the library is there and writes one integer.
    let asked = unsafe { sys::ncclGetVersion(&raw mut version) };
    let untold =
        |words| format!("{} does not tell its version: {words}: {}", Library::Nccl.file(), Library::Nccl.remedy());
    answer(asked, ptr::null_mut()).map_err(|words| KernelError::Unusable(untold(words)))?;
    Ok(version)
}

/// Whether communicators can be made on this machine: for a worker to know before it loads a model.
///
/// # Errors
/// [`KernelError::Unusable`], with what to do, when NCCL is missing or too old.
pub fn require() -> Result<(), KernelError> {
    new_enough(version()?)
}

fn new_enough(version: c_int) -> Result<(), KernelError> {
    if version >= OLDEST {
        return Ok(());
    }
    let (file, remedy) = (Library::Nccl.file(), Library::Nccl.remedy());
    let detail = format!("{file} has version code {version}, and {OLDEST} (2.14.0) or later is needed: {remedy}");
    Err(KernelError::Unusable(detail))
}

/// NCCL that cannot be used, as a failure to make a communicator.
pub(super) fn setup(error: KernelError) -> CommunicatorError {
    CommunicatorError::Setup(error.to_string())
}

/// A new id.
///
/// # Errors
/// [`CommunicatorError::Setup`] when NCCL is missing, too old, or cannot listen.
pub(super) fn unique_id() -> Result<[u8; 128], CommunicatorError> {
    require().map_err(setup)?;
    let mut id = ncclUniqueId { internal: [0; 128] };
    // SAFETY: a valid place for the id.
    let made = unsafe { sys::ncclGetUniqueId(&raw mut id) };
    let no_id = |words| CommunicatorError::Setup(format!("no id can be made: {words}"));
    answer(made, ptr::null_mut()).map_err(no_id)?;
    Ok(id.internal.map(|byte| byte as u8))
}

fn config() -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
        graphUsageMode: UNDEFINED,
        numRmaCtx: UNDEFINED,
        maxP2pPeers: UNDEFINED,
    }
}

impl Raw {
    /// Begins to make a communicator of the device whose context is current; [`Raw::progress`] tells when it is made.
    /// The library is there.
    pub(super) fn begin(id: &[u8; 128], rank: c_int, world_size: c_int) -> Result<Self, Words> {
        let id = ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        let (mut communicator, mut config) = (ptr::null_mut(), config());
        // SAFETY: valid places, and a configuration as NCCL's header sets it up.
        let begun =
            unsafe { sys::ncclCommInitRankConfig(&raw mut communicator, world_size, id, rank, &raw mut config) };
        answer(begun, ptr::null_mut())?;
        Ok(Self(communicator))
    }

    /// Whether what the last call began is done, and whether all is well.
    pub(super) fn progress(&self) -> Result<Progress, Words> {
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator lives, and `state` is a valid place.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.0, &raw mut state) };
        answer(asked, self.0)?;
        answer(state, self.0)
    }

    /// Begins to enqueue an all-reduce.
    pub(super) fn all_reduce(&self, operand: Operand, stream: CUstream) -> Result<Progress, Words> {
        let Operand { address, count, data, reduction } = operand;
        let buffer = ptr::with_exposed_provenance_mut::<c_void>(address as usize);
        // SAFETY: the communicator and the stream live; whoever made the operand keeps its memory until the reduction
        // is over.
        let begun = unsafe { sys::ncclAllReduce(buffer, buffer, count, data, reduction, self.0, stream.cast()) };
        answer(begun, self.0)
    }

    /// Begins to take leave of the other ranks.
    pub(super) fn finalize(&self) -> Result<Progress, Words> {
        // SAFETY: the communicator lives.
        let begun = unsafe { sys::ncclCommFinalize(self.0) };
        answer(begun, self.0)
    }

    /// Frees a communicator that is finalized. May wait for ranks that are not.
    pub(super) fn destroy(self) -> Result<(), Words> {
        // SAFETY: the communicator lives, and nothing can use it afterwards.
        let destroyed = unsafe { sys::ncclCommDestroy(self.0) };
        answer(destroyed, ptr::null_mut()).map(|_| ())
    }

    /// Makes whatever the communicator has on the device end, and frees it.
    pub(super) fn abort(self) -> Result<(), Words> {
        // SAFETY: the communicator lives, and nothing can use it afterwards.
        let aborted = unsafe { sys::ncclCommAbort(self.0) };
        answer(aborted, ptr::null_mut()).map(|_| ())
    }
}

/// A result of NCCL as ours; the failures of a communicator that is not there are those of the process.
fn answer(result: ncclResult_t, communicator: ncclComm_t) -> Result<Progress, Words> {
    match result {
        ncclResult_t::ncclSuccess => Ok(Progress::Done),
        ncclResult_t::ncclInProgress => Ok(Progress::Underway),
        // SAFETY: NCCL returns texts that end in a zero and stay; a null communicator is allowed.
        failure => unsafe {
            let general = text(sys::ncclGetErrorString(failure));
            let last = text(sys::ncclGetLastError(communicator));
            Err(if last.is_empty() { general } else { format!("{general} ({last})") })
        },
    }
}

/// # Safety
/// `text` is null or ends in a zero, and stays as it is during the call.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and as the caller promised.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_without_nonblocking_communicators_is_refused() {
        let error = new_enough(2_13_04).unwrap_err().to_string();
        assert!(
            error.contains("21304") && error.contains("2.14.0") && error.contains(Library::Nccl.remedy()),
            "{error}"
        );
        assert!(new_enough(OLDEST).is_ok() && new_enough(2_30_00).is_ok());
    }
}
