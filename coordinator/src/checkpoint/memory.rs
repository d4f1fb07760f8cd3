//! A store in memory: the second implementation that keeps the conformance suite honest, and a fast one for tests.

use super::store::{Store, StoreError, check_name};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Objects in an ordered map.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl MemoryStore {
    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        check_name(name)?;
        self.objects().insert(name.to_owned(), Bytes::copy_from_slice(bytes));
        Ok(())
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        check_name(name)?;
        let mut objects = self.objects();
        if objects.contains_key(name) {
            return Err(StoreError::Exists(name.to_owned()));
        }
        objects.insert(name.to_owned(), Bytes::copy_from_slice(bytes));
        Ok(())
    }

    fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        check_name(name)?;
        self.objects().get(name).cloned().ok_or_else(|| StoreError::NotFound(name.to_owned()))
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        if prefix.is_empty() {
            return Ok(self.objects().keys().cloned().collect());
        }
        check_name(prefix)?;
        let below = format!("{prefix}/");
        Ok(self.objects().keys().filter(|name| name.starts_with(&below)).cloned().collect())
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        check_name(name)?;
        self.objects().remove(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        super::super::conformance::run(&MemoryStore::default()).unwrap();
    }
}
