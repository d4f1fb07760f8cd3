//! A store in a directory of this machine.

use super::store::{Store, StoreError, check_name};
use bytes::Bytes;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// Objects as files under a root. Write order: temporary file, fsync, rename (or link, to create), fsync directory.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    temporary: AtomicU64,
}

impl LocalStore {
    /// The store under `root`, which is made if need be.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(root).map_err(failed("create", &root.display().to_string()))?;
        Ok(Self { root: root.to_owned(), temporary: AtomicU64::new(0) })
    }

    fn path(&self, name: &str) -> Result<PathBuf, StoreError> {
        check_name(name)?;
        Ok(self.root.join(name))
    }

    /// Writes a temporary file next to `path` and lets `publish` give it its name.
    fn write(
        &self,
        name: &str,
        bytes: &[u8],
        publish: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let write = || {
            let directory = path.parent().unwrap_or(&self.root);
            make_directories(&self.root, directory)?;
            let number = self.temporary.fetch_add(1, Ordering::Relaxed);
            let temporary = directory.join(format!(".tmp-{}-{number}", std::process::id()));
            let written = write_synced(&temporary, bytes).and_then(|()| publish(&temporary, &path));
            // After a rename there is nothing left to remove; in every other case nothing may be left behind.
            let _ = fs::remove_file(&temporary);
            written.and_then(|()| sync_directory(directory))
        };
        write().map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => StoreError::Exists(name.to_owned()),
            _ => failed("write", name)(source),
        })
    }
}

impl Store for LocalStore {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write(name, bytes, |temporary, path| fs::rename(temporary, path))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        // Unlike a rename, a link fails when its target exists.
        self.write(name, bytes, |temporary, path| fs::hard_link(temporary, path))
    }

    fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        match fs::read(self.path(name)?) {
            Ok(bytes) => Ok(bytes.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StoreError::NotFound(name.to_owned())),
            Err(e) => Err(failed("read", name)(e)),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let top = if prefix.is_empty() { self.root.clone() } else { self.path(prefix)? };
        let mut names = Vec::new();
        walk(&top, prefix, &mut names).map_err(failed("list", prefix))?;
        names.sort_unstable();
        Ok(names)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed("delete", name)(e)),
        }
        // A directory is no object: the last one out removes it. It stays when another object is in it.
        for directory in path.ancestors().skip(1).take_while(|d| *d != self.root) {
            if fs::remove_dir(directory).is_err() {
                return sync_directory(directory).map_err(failed("delete", name));
            }
        }
        sync_directory(&self.root).map_err(failed("delete", name))
    }
}

fn failed(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> StoreError {
    let name = name.to_owned();
    move |source| StoreError::Io { action, name, source }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes missing directories between `root` and `directory`, each durable in its parent.
fn make_directories(root: &Path, directory: &Path) -> io::Result<()> {
    if directory == root || directory.is_dir() {
        return Ok(());
    }
    let parent = directory.parent().unwrap_or(root);
    make_directories(root, parent)?;
    match fs::create_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => sync_directory(parent),
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Collects the files under `directory`; names begin with `prefix`. Temporary files and other strangers are no objects.
fn walk(directory: &Path, prefix: &str, names: &mut Vec<String>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let Some(segment) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let name = if prefix.is_empty() { segment } else { format!("{prefix}/{segment}") };
        if check_name(&name).is_err() {
            continue;
        }
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &name, names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        let directory = tempfile::tempdir().unwrap();
        super::super::conformance::run(&LocalStore::open(directory.path()).unwrap()).unwrap();
    }

    #[test]
    fn leaves_no_temporary_file_and_no_empty_directory() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        store.create("a/b/c", b"1").unwrap();
        assert!(matches!(store.create("a/b/c", b"2"), Err(StoreError::Exists(_))));
        store.put("a/b/c", b"3").unwrap();
        let names: Vec<_> =
            fs::read_dir(directory.path().join("a/b")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["c"]);
        store.delete("a/b/c").unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_failing_disk_is_an_error_that_names_the_object() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        store.put("a", b"1").unwrap();
        let error = store.put("a/b", b"2").unwrap_err().to_string();
        assert!(error.contains("a/b"), "{error}");
    }
}
