//! An f64 version of every operation of the contract.
