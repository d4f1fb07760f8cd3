//! From `checkpoint.store` to a store.

use super::{local::LocalStore, store::Store};
use ballast_proto::Failure;
use std::{path::Path, sync::Arc};

/// Longest time that one call on a remote store may take, with all that is tried again: long enough for a large adapter over a
/// slow line and for a service that restarts, short enough that a run does not stand before a dead one for ever.
#[cfg(feature = "remote-stores")]
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(180);

/// The store that `url` names: a bucket, or with `file://` a directory.
///
/// # Errors
/// `StorageFailed` when it cannot be opened; `RunFileBadValue` when this binary was built without what it takes.
pub fn open_store(url: &str) -> Result<Arc<dyn Store>, Failure> {
    match url.strip_prefix("file://") {
        Some(path) => Ok(Arc::new(LocalStore::open(Path::new(path))?)),
        None => open_remote(url),
    }
}

#[cfg(feature = "remote-stores")]
fn open_remote(url: &str) -> Result<Arc<dyn Store>, Failure> {
    Ok(Arc::new(super::remote::RemoteStore::open(url, std::env::vars(), DEADLINE)?))
}

#[cfg(not(feature = "remote-stores"))]
fn open_remote(url: &str) -> Result<Arc<dyn Store>, Failure> {
    let message = format!(
        "checkpoint.store = {url:?}: this ballast was built without remote stores; build it with the cargo feature \
         `remote-stores`, or name a directory (file:///path)"
    );
    Err(Failure::new(ballast_proto::ErrorCode::RunFileBadValue, message))
}
