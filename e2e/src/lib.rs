//! Ballast beside reference implementations, and as real processes.
//!
//! [`golden`] reads a training run that PEFT made; [`parity`] trains the same and measures the distance. The other way
//! round, [`planned`] tells a peer what a run file trains, and [`losses`] are what the two reach. The tests start real
//! `ballast` processes ([`process`], [`cluster`]) on random models ([`tiny`]); [`chaos`] strikes them, [`hosts`] the network between
//! them, [`recovery`] measures how soon they go on, and [`scale`] has one of them coordinate thousands of workers.
#![forbid(unsafe_code)]

pub mod chaos;
pub mod cluster;
pub mod golden;
pub mod hosts;
pub mod losses;
pub mod parity;
pub mod planned;
pub mod process;
pub mod recovery;
pub mod scale;
pub mod tiny;
