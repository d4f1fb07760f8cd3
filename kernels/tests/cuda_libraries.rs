//! A library that is missing is an error that names it and says how to get it; nothing panics. `make test-cuda` runs
//! this without a device, where there is something to miss.
#![cfg(feature = "cuda")]

use ballast_kernels::KernelError;
use ballast_kernels::cuda::nccl::{self, CommunicatorId};
use ballast_kernels::cuda::{CudaBackend, Library, Storage, probe};

const ALL: [Library; 3] = [Library::Driver, Library::CublasLt, Library::Nccl];

#[test]
fn a_missing_library_is_named_with_its_remedy() {
    for library in ALL {
        match library.require() {
            Ok(()) => assert!(library.is_present()),
            Err(error) => {
                let text = error.to_string();
                assert!(!library.is_present());
                assert!(text.contains(library.file()) && text.contains(library.remedy()), "{text}");
            }
        }
    }
    assert!(Library::Nccl.remedy().contains("libnccl.so.2"), "the name that distributions give it");
}

#[test]
fn a_backend_is_refused_for_the_first_library_that_is_missing() {
    let first = [Library::Driver, Library::CublasLt].into_iter().find(|library| !library.is_present());
    match (CudaBackend::new(0, Storage::F32), first) {
        (Err(error), Some(library)) => assert!(error.to_string().contains(library.file()), "{error}"),
        (Ok(_), Some(library)) => panic!("opened without {library:?}"),
        // All is there: whether there is a device is for the other tests.
        (_, None) => {}
    }
}

#[test]
fn the_probe_tells_what_is_missing() {
    let probe = probe();
    for library in ALL {
        assert_eq!(probe.missing.contains(&library), !library.is_present());
    }
    assert_eq!(probe.cublaslt.is_some(), Library::CublasLt.is_present());
    assert!(Library::Driver.is_present() || (probe.driver.is_none() && probe.devices.is_empty()));
}

#[test]
fn nccl_that_is_missing_is_an_error() {
    match (nccl::require(), Library::Nccl.is_present()) {
        (Err(KernelError::Unusable(why)), false) => assert!(why.contains(Library::Nccl.remedy()), "{why}"),
        (Ok(()), true) => {}
        (required, present) => panic!("{required:?}, and nccl is present: {present}"),
    }
    match (CommunicatorId::new(), Library::Nccl.is_present()) {
        (Err(error), false) => assert!(error.to_string().contains(Library::Nccl.remedy()), "{error}"),
        (Ok(_), true) => {}
        (made, present) => panic!("{made:?}, and nccl is present: {present}"),
    }
}
