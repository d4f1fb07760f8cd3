//! Functions that this device lacks. They answer an error, so that a program that uses one learns it from its own error
//! handling and not from a loader that stops at a missing symbol.

use crate::abi::{CUresult, Error};

macro_rules! unsupported {
    ($($name:ident)*) => { $(
        // Arguments are not declared: with the C calling convention the caller cleans them up.
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> CUresult {
            Error::NotSupported as CUresult
        }
    )* };
}

unsupported! {
    cuCtxCreate_v2 cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetLimit cuCtxSetLimit
    cuCtxGetCacheConfig cuCtxSetCacheConfig cuDeviceSetMemPool cuMemPoolCreate cuMemPoolDestroy
    cuMemAllocManaged cuMemAdvise_v2 cuMemPrefetchAsync_v2 cuStreamAttachMemAsync cuMemcpyPeerAsync
    cuLaunchCooperativeKernel cuOccupancyMaxActiveClusters cuOccupancyMaxPotentialClusterSize
    cuStreamBeginCapture_v2 cuStreamEndCapture cuGraphInstantiateWithFlags cuGraphLaunch
    cuGraphUpload cuGraphDestroy cuGraphExecDestroy
    cuImportExternalMemory cuExternalMemoryGetMappedBuffer cuDestroyExternalMemory
    cuModuleLoadFatBinary cuLinkCreate_v2 cuLibraryLoadData
}
