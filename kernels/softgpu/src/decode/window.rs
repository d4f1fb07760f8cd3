//! Where shared and local memory lie among generic addresses: so high that no address of a host process is there.

pub(crate) const SHARED_WINDOW: u64 = 0xFFF1_0000_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0xFFF2_0000_0000_0000;
/// Size of each window.
pub(crate) const WINDOW_BYTES: u64 = 1 << 32;
