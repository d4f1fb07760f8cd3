//! Making a run durable: the store, checkpoints with their manifests, PEFT files, and the run directory's identity.
//!
//! ```text
//! run.json                    what the run is
//! epochs/00000001             one for every start of a coordinator, created once and never replaced
//! checkpoints/step-00000120.g3/{adapter_model.safetensors, adapter_config.json, optimizer.safetensors, state.json,
//!                               manifest.json}
//! latest                      names the newest complete checkpoint, for people
//! adapter/                    the final PEFT directory
//! ```
//!
//! A checkpoint exists once its manifest does: the manifest is written last, created once, and carries size and SHA-256
//! of every other file. Directory names are unique because generation numbers are never reused.

mod adapter;
pub mod conformance;
mod directories;
mod epoch;
#[cfg(test)]
mod full_disk;
mod identity;
mod load;
mod local;
mod manifest;
mod memory;
mod open;
mod peft;
#[cfg(feature = "remote-stores")]
mod remote;
mod save;
mod store;
mod tensors;

pub use adapter::{FinalAdapter, publish_adapter};
pub use epoch::{fence, same_history, take_epoch};
pub use identity::{Identity, RUN_FILE, RunRecord, admit};
pub use load::{Checkpoint, load, newest};
pub use local::LocalStore;
pub use manifest::{FileEntry, MANIFEST, Manifest, Unverified, sha256_hex};
pub use memory::MemoryStore;
pub use open::open_store;
pub use peft::{ADAPTER_CONFIG, AdapterConfig};
#[cfg(feature = "remote-stores")]
pub use remote::RemoteStore;
pub use save::{ADAPTER_MODEL, OPTIMIZER, STATE, SaveRequest, StateRecord, retain, save};
pub use store::{Store, StoreError, locate};
pub use tensors::{AdapterShapes, validate_adapter, validate_optimizer};

#[cfg(test)]
pub(crate) use tensors::tests::{
    adapter as test_adapter, architecture as test_architecture, optimizer as test_optimizer,
};
