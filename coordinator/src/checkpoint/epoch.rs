//! Coordinator epochs: taken once, and whoever has lost theirs publishes nothing more.
//!
//! An epoch is an object that is created only once, so of two coordinators on one store exactly one gets it, wherever they run.
//! The one with the newest epoch owns the store. The other notices before it publishes ([`fence`]); should it look just before
//! the newer epoch is taken, it leaves a checkpoint of a name that nobody else uses and that no other ledger knows.

use super::{
    directories::complete,
    manifest::{Manifest, Unverified},
    store::{Store, StoreError},
};
use ballast_proto::{ErrorCode, Failure};
use std::hash::{BuildHasher, Hasher, RandomState};

const EPOCHS: &str = "epochs";

fn name(epoch: u64) -> String {
    format!("{EPOCHS}/{epoch:08}")
}

/// The newest epoch that was taken; 0 when none was.
fn newest_epoch(store: &dyn Store) -> Result<u64, StoreError> {
    let taken = store.list(EPOCHS)?;
    Ok(taken.iter().filter_map(|name| name.rsplit('/').next()?.parse().ok()).max().unwrap_or(0))
}

/// Takes the next coordinator epoch, for good.
///
/// # Errors
/// `RunDirectoryInUse` when another coordinator took it at the same moment; `StorageFailed` when the store fails.
pub fn take_epoch(store: &dyn Store) -> Result<u64, Failure> {
    let epoch = newest_epoch(store)? + 1;
    // Nobody else writes these bytes: process numbers are equal in every container.
    let nonce = RandomState::new().build_hasher().finish();
    let token = format!("process {}, {nonce:016x}\n", std::process::id());
    match store.create(&name(epoch), token.as_bytes()) {
        Ok(()) => Ok(epoch),
        // A network may lose the answer, and then the client that asks again meets its own object.
        Err(StoreError::Exists(_)) if store.get(&name(epoch))? == token.as_bytes() => Ok(epoch),
        Err(StoreError::Exists(_)) => {
            let message = format!("another coordinator has just taken epoch {epoch} of {}", store.place());
            Err(Failure::new(ErrorCode::RunDirectoryInUse, message))
        }
        Err(e) => Err(e.into()),
    }
}

/// Whether the coordinator of `epoch` still owns the store. To be asked before anything is published.
///
/// # Errors
/// `RunDirectoryInUse` when another coordinator has taken a newer epoch; `StorageFailed` when the store fails.
pub fn fence(store: &dyn Store, epoch: u64) -> Result<(), Failure> {
    let newest = newest_epoch(store)?;
    if newest <= epoch {
        return Ok(());
    }
    let message = format!(
        "another coordinator has taken {} over (epoch {newest}, this one has {epoch}): this one publishes nothing more",
        store.place()
    );
    Err(Failure::new(ErrorCode::RunDirectoryInUse, message))
}

/// Whether the ledger whose newest chapter is of coordinator `ledger_epoch` (0: it is empty) is the one that the store's
/// checkpoints were made by. Both grow together: an epoch is taken before its chapter begins, and checkpoints follow the
/// chapter. Going on with another ledger would train again, and finally delete, what was done.
///
/// # Errors
/// `LedgerElsewhere` when it is not; `StorageFailed` when the store fails.
pub fn same_history(store: &dyn Store, ledger_epoch: u64) -> Result<(), Failure> {
    let place = store.place();
    let newest = newest_epoch(store)?;
    if newest < ledger_epoch {
        let message = format!(
            "the run directory's ledger is of coordinator {ledger_epoch}, but {place} knows {}: it is not where this \
             run's checkpoints are; set checkpoint.store back, or move the run directory away to start anew",
            if newest == 0 { "none".to_owned() } else { format!("only {newest}") }
        );
        return Err(Failure::new(ErrorCode::LedgerElsewhere, message));
    }
    for directory in complete(store)? {
        let epoch = match Manifest::read(store, &directory) {
            Ok(manifest) => manifest.epoch(),
            Err(Unverified::Unavailable(error)) => return Err(error.into()),
            // It is passed over when the newest checkpoint is looked for, and the reason told.
            Err(Unverified::Damaged(_)) => None,
        };
        let Some(epoch) = epoch else { continue };
        if epoch > ledger_epoch {
            let message = format!(
                "{directory} in {place} was made by coordinator {epoch}, of whom the ledger in the run directory says \
                 nothing{}: start on the machine that has the run directory, or copy its ledger here",
                if ledger_epoch == 0 { " (it is empty)" } else { "" }
            );
            return Err(Failure::new(ErrorCode::LedgerElsewhere, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{MANIFEST, MemoryStore};

    #[test]
    fn epochs_rise_and_the_newest_owns_the_store() {
        let store = MemoryStore::default();
        assert_eq!(take_epoch(&store).unwrap(), 1);
        fence(&store, 1).unwrap();
        assert_eq!(take_epoch(&store).unwrap(), 2);
        assert_eq!(store.list("epochs").unwrap(), ["epochs/00000001", "epochs/00000002"]);
        let failure = fence(&store, 1).unwrap_err();
        assert_eq!(failure.code, ErrorCode::RunDirectoryInUse);
        assert!(failure.message.contains("epoch 2, this one has 1"), "{failure}");
        fence(&store, 2).unwrap();
    }

    #[test]
    fn of_coordinators_that_start_at_once_each_gets_an_epoch_of_its_own() {
        let store = MemoryStore::default();
        let taken: Vec<_> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8).map(|_| scope.spawn(|| take_epoch(&store))).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        let mut epochs: Vec<u64> = taken.iter().filter_map(|taken| taken.as_ref().ok().copied()).collect();
        epochs.sort_unstable();
        assert_eq!(epochs, (1..=epochs.len() as u64).collect::<Vec<_>>());
        assert!(!epochs.is_empty());
        for failure in taken.into_iter().filter_map(Result::err) {
            assert_eq!(failure.code, ErrorCode::RunDirectoryInUse);
        }
    }

    /// A store that carries a `create` out and then says that the object existed: what a retry after a lost answer sees.
    struct LosesAnswers(MemoryStore);

    impl Store for LosesAnswers {
        fn place(&self) -> String {
            self.0.place()
        }
        fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
            self.0.put(name, bytes)
        }
        fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
            self.0.create(name, bytes)?;
            Err(StoreError::Exists(name.to_owned()))
        }
        fn get(&self, name: &str) -> Result<bytes::Bytes, StoreError> {
            self.0.get(name)
        }
        fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
            self.0.list(prefix)
        }
        fn delete(&self, name: &str) -> Result<(), StoreError> {
            self.0.delete(name)
        }
    }

    #[test]
    fn an_epoch_whose_answer_was_lost_is_still_taken() {
        assert_eq!(take_epoch(&LosesAnswers(MemoryStore::default())).unwrap(), 1);
    }

    fn with_checkpoint_of(epoch: u64) -> MemoryStore {
        let store = MemoryStore::default();
        (1..=epoch).for_each(|next| assert_eq!(take_epoch(&store).unwrap(), next));
        let manifest =
            Manifest { format: Manifest::FORMAT, step: 5, generation: format!("{epoch}.1"), files: Vec::new() };
        let bytes = serde_json::to_vec(&manifest).unwrap();
        store.put(&format!("checkpoints/step-00000005.g1/{MANIFEST}"), &bytes).unwrap();
        store
    }

    #[test]
    fn a_ledger_that_is_not_the_checkpoints_own_is_refused() {
        let refusal = |store: &MemoryStore, ledger_epoch| {
            let failure = same_history(store, ledger_epoch).unwrap_err();
            assert_eq!(failure.code, ErrorCode::LedgerElsewhere);
            failure.message
        };
        // An empty run directory before a store full of checkpoints, and one that has fallen behind.
        assert!(refusal(&with_checkpoint_of(1), 0).contains("(it is empty)"));
        assert!(refusal(&with_checkpoint_of(3), 2).contains("made by coordinator 3"));
        // A full run directory before an empty store, and before one that has fallen behind.
        assert!(refusal(&MemoryStore::default(), 1).contains("knows none"));
        assert!(refusal(&with_checkpoint_of(1), 2).contains("knows only 1"));
        same_history(&with_checkpoint_of(2), 2).unwrap();
        same_history(&MemoryStore::default(), 0).unwrap();
        // A coordinator that took an epoch and died before its chapter began left nothing behind.
        let store = with_checkpoint_of(2);
        take_epoch(&store).unwrap();
        same_history(&store, 2).unwrap();
    }
}
