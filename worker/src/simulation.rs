//! The session as it is, without threads and over whatever network its station has, with an engine of the caller's.

pub use crate::session::simulation::{Engine, Export, Loader, Meeting, Station, work};
