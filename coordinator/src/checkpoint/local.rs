//! A store in a directory.

use super::store::{Store, StoreError, check_name};
use crate::disk::{self, Disk, RealDisk};
use bytes::Bytes;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Temporary files begin so; no object does.
const TEMPORARY: &str = ".tmp-";

/// Objects as files under a root. Write order: temporary file, fsync, rename (or link, to create), fsync directory.
#[derive(Debug)]
pub struct LocalStore {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    temporary: AtomicU64,
}

impl LocalStore {
    /// The store under `root`, which is made if need be.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(RealDisk), root)
    }

    pub(crate) fn open_on(disk: Arc<dyn Disk>, root: &Path) -> Result<Self, StoreError> {
        disk::make_directories(&*disk, root).map_err(failed("create", &root.display().to_string()))?;
        Ok(Self { disk, root: root.to_owned(), temporary: AtomicU64::new(0) })
    }

    /// Removes temporary files of a process that died. Only for who has the store for themselves.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk fails.
    pub fn clear_temporary(&self) -> Result<(), StoreError> {
        let mut left = Vec::new();
        walk(&*self.disk, &self.root, "", &mut |directory, segment, _| {
            if segment.starts_with(TEMPORARY) {
                left.push(directory.join(segment));
            }
        })
        .map_err(failed("list", &self.place()))?;
        let removed = left.iter().try_for_each(|path| self.disk.remove_file(path));
        removed.map_err(failed("clear", &self.place()))
    }

    fn path(&self, name: &str) -> Result<PathBuf, StoreError> {
        check_name(name)?;
        Ok(self.root.join(name))
    }

    /// Writes a temporary file next to where `name` will be; returns its path and the object's.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(PathBuf, PathBuf), StoreError> {
        let path = self.path(name)?;
        let directory = disk::parent(&path);
        let write = || {
            disk::make_directories(&*self.disk, directory)?;
            let (temporary, mut file) = self.create_temporary(directory)?;
            match file.write_all(bytes).and_then(|()| file.sync()) {
                Ok(()) => Ok(temporary),
                Err(error) => {
                    // Of no use to anyone, and the disk may be full of it.
                    let _ = self.disk.remove_file(&temporary);
                    Err(error)
                }
            }
        };
        let temporary = write().map_err(failed("write", name))?;
        Ok((temporary, path))
    }

    /// A new file. A dead process of the same number (in a container it is always the same) may have left some.
    fn create_temporary(&self, directory: &Path) -> io::Result<(PathBuf, Box<dyn disk::DiskFile>)> {
        loop {
            let number = self.temporary.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
            match self.disk.create(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                created => return Ok((path, created?)),
            }
        }
    }

    fn sync_directory_of(&self, name: &str, path: &Path) -> Result<(), StoreError> {
        self.disk.sync_directory(disk::parent(path)).map_err(failed("write", name))
    }
}

impl Store for LocalStore {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let (temporary, path) = self.write(name, bytes)?;
        if let Err(error) = self.disk.rename(&temporary, &path) {
            let _ = self.disk.remove_file(&temporary);
            return Err(failed("write", name)(error));
        }
        self.sync_directory_of(name, &path)
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let (temporary, path) = self.write(name, bytes)?;
        // Unlike a rename, a link fails when its target exists.
        let linked = self.disk.link(&temporary, &path);
        let _ = self.disk.remove_file(&temporary);
        match linked {
            Ok(()) => self.sync_directory_of(name, &path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(StoreError::Exists(name.to_owned())),
            Err(e) => Err(failed("write", name)(e)),
        }
    }

    fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
        match self.disk.read(&self.path(name)?) {
            Ok(bytes) => Ok(bytes.into()),
            // A directory is no object, and nothing lies below a file.
            Err(e) if matches!(e.kind(), NotFound | IsADirectory | NotADirectory) => {
                Err(StoreError::NotFound(name.to_owned()))
            }
            Err(e) => Err(failed("read", name)(e)),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let top = if prefix.is_empty() { self.root.clone() } else { self.path(prefix)? };
        let mut names = Vec::new();
        walk(&*self.disk, &top, prefix, &mut |_, _, name| {
            // Temporary files and other strangers are no objects.
            if check_name(name).is_ok() {
                names.push(name.to_owned());
            }
        })
        .map_err(failed("list", prefix))?;
        names.sort_unstable();
        Ok(names)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        match self.disk.remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed("delete", name)(e)),
        }
        // A directory is no object: the last one out removes it. It stays when another object is in it.
        for directory in path.ancestors().skip(1).take_while(|d| *d != self.root) {
            if self.disk.remove_directory(directory).is_err() {
                return self.disk.sync_directory(directory).map_err(failed("delete", name));
            }
        }
        self.disk.sync_directory(&self.root).map_err(failed("delete", name))
    }
}

fn failed(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> StoreError {
    let name = name.to_owned();
    move |source| StoreError::Io { action, name, source }
}

/// Shows every file under `directory` to `visit`: its directory, its last segment, and its name, which begins with `prefix`.
fn walk(disk: &dyn Disk, directory: &Path, prefix: &str, visit: &mut dyn FnMut(&Path, &str, &str)) -> io::Result<()> {
    let entries = match disk.entries(directory) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(e),
    };
    for disk::Entry { name: segment, is_directory } in entries {
        let name = if prefix.is_empty() { segment.clone() } else { format!("{prefix}/{segment}") };
        if is_directory {
            walk(disk, &directory.join(&segment), &name, visit)?;
        } else {
            visit(directory, &segment, &name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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

    #[test]
    fn what_a_dead_process_left_is_neither_listed_nor_in_the_way_and_can_be_cleared() {
        let directory = tempfile::tempdir().unwrap();
        let left = directory.path().join(format!("a/{TEMPORARY}{}-0", std::process::id()));
        fs::create_dir(directory.path().join("a")).unwrap();
        fs::write(&left, "half").unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        store.put("a/b", b"1").unwrap();
        assert_eq!(store.list("").unwrap(), ["a/b"]);
        assert!(left.exists());
        store.clear_temporary().unwrap();
        assert!(!left.exists());
        assert_eq!(store.get("a/b").unwrap(), b"1"[..]);
    }
}
