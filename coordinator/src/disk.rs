//! The few operations on files that durability rests on. Everything that must survive a crash goes through [`Disk`], so that
//! tests can put a simulated disk under it and let it lose power between any two operations.

#[cfg(test)]
mod crash_points;
#[cfg(any(test, feature = "simulation"))]
#[cfg_attr(not(feature = "simulation"), expect(unreachable_pub, reason = "only simulations use it from outside"))]
pub(crate) mod simulated;

use std::{
    any::Any,
    fmt::Debug,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::Path,
};

/// A file system. Nothing is durable before it is synced: content by its file, names by their directory.
pub(crate) trait Disk: Debug + Send + Sync + 'static {
    /// The whole content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// A new file, for writing; `AlreadyExists` when the name is taken.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// A file for writing at its end, made if need be.
    fn append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Gives a file another name, replacing what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name; `AlreadyExists` when it is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a file's name away.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// A new directory; `AlreadyExists` when the name is taken.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory that is empty.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// Whether there is a directory of this name.
    fn is_directory(&self, path: &Path) -> bool;
    /// What is in a directory, in no order.
    fn entries(&self, path: &Path) -> io::Result<Vec<Entry>>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Locks a file, made if need be, against every other process; `None` when another has it. Held until it is dropped, or the
    /// process ends, however.
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>>;
}

/// Holds what [`Disk::lock`] has locked.
pub(crate) type Lock = Box<dyn Any + Send>;

/// A file that is open for writing.
pub(crate) trait DiskFile: Debug + Send {
    /// Writes at the end.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Cuts it off after `length` bytes.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Makes its content durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The name; one that is not UTF-8 is none of ours and never listed.
    pub(crate) name: String,
    /// Whether it is a directory's.
    pub(crate) is_directory: bool,
}

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::create_new(path)?))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().create(true).append(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn entries(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str() {
                entries.push(Entry { name: name.to_owned(), is_directory: entry.file_type()?.is_dir() });
            }
        }
        Ok(entries)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl DiskFile for File {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// The directory that a path's name stands in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// Makes a directory and the missing ones above it, each durable in its parent.
pub(crate) fn make_directories(disk: &dyn Disk, directory: &Path) -> io::Result<()> {
    if disk.is_directory(directory) {
        return Ok(());
    }
    let parent = parent(directory);
    if parent != directory {
        make_directories(disk, parent)?;
    }
    match disk.create_directory(directory) {
        // Somebody else was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && disk.is_directory(directory) => {}
        made => made?,
    }
    disk.sync_directory(parent)
}
