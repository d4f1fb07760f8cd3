//! What a coordinator needs in a simulation: a disk that loses power, and a look at what is on it.

pub use crate::disk::simulated::{Dice, Observer, Platter, SimulatedDisk};

use crate::ledger::{self, LEDGER, Record};
use std::path::Path;

/// The records of the ledger in a run directory, whole ones only.
///
/// # Errors
/// What is wrong with it.
pub fn ledger(disk: &SimulatedDisk, run_directory: &Path) -> Result<Vec<Record>, String> {
    let (records, ..) = ledger::read_on(disk, &run_directory.join(LEDGER)).map_err(|e| e.to_string())?;
    Ok(records)
}
