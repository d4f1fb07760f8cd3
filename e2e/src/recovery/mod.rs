//! How soon training goes on after a worker is killed, or hangs: [`Watch`] strikes one worker after the other at moments drawn from a
//! seed and has each replaced; [`Sample`] sums up what that took.

mod sample;
mod watch;

pub use sample::Sample;
pub use watch::{LEASE, Measured, Watch};
