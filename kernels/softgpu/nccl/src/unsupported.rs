//! Functions that this library lacks. They answer an error, so that a program that uses one learns it from its own error
//! handling and not from a loader that stops at a missing symbol.

use crate::abi::{Failure, Outcome, failed};

macro_rules! unsupported {
    ($($name:ident)*) => { $(
        // Arguments are not declared: with the C calling convention the caller cleans them up.
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> Outcome {
            failed(Failure::InvalidUsage, concat!(stringify!($name), " is not there")) as Outcome
        }
    )* };
}

unsupported! {
    ncclCommInitAll ncclCommSplit ncclCommShrink ncclReduce ncclReduceScatter ncclSend ncclRecv
    ncclRedOpCreatePreMulSum ncclRedOpDestroy ncclCommRegister ncclCommDeregister
}
