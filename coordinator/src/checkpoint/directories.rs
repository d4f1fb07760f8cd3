//! Directories of checkpoints: their names, and which of them are complete.

use super::{
    manifest::MANIFEST,
    store::{Store, StoreError},
};
use std::{cmp::Reverse, collections::BTreeMap};

const CHECKPOINTS: &str = "checkpoints";

/// Step and generation number of a checkpoint: its age.
pub(super) type Age = (u64, u64);

/// Name of a checkpoint's directory.
pub(super) fn directory(step: u64, generation: u64) -> String {
    format!("{CHECKPOINTS}/step-{step:08}.g{generation}")
}

/// Step and generation number of a checkpoint's directory name.
pub(super) fn parse_directory(name: &str) -> Option<Age> {
    let (step, generation) = name.strip_prefix("step-")?.split_once(".g")?;
    Some((step.parse().ok()?, generation.parse().ok()?))
}

/// Files of every checkpoint directory, newest first.
pub(super) fn directories(store: &dyn Store) -> Result<Vec<(Age, Vec<String>)>, StoreError> {
    let mut found: BTreeMap<Reverse<Age>, Vec<String>> = BTreeMap::new();
    for name in store.list(CHECKPOINTS)? {
        let key = name.split('/').nth(1).and_then(parse_directory);
        if let Some(key) = key {
            found.entry(Reverse(key)).or_default().push(name);
        }
    }
    Ok(found.into_iter().map(|(Reverse(key), files)| (key, files)).collect())
}

/// Whether these files of a directory make a checkpoint.
pub(super) fn is_complete(files: &[String]) -> bool {
    files.iter().any(|name| name.rsplit('/').next() == Some(MANIFEST))
}

/// Every directory with a manifest, newest first.
pub(super) fn complete(store: &dyn Store) -> Result<Vec<String>, StoreError> {
    let complete = directories(store)?.into_iter().filter(|(_, files)| is_complete(files));
    Ok(complete.map(|((step, generation), _)| directory(step, generation)).collect())
}
