//! A disk that loses power.

mod platter;

pub use platter::Platter;

use super::{Disk, DiskFile, Entry, Lock};
use platter::{Change, Names, Node, Number, Write};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Random choices, replayed by their seed.
#[derive(Clone, Debug)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// Of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound.max(1) as u64) as usize
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// A seed for other dice.
    pub fn seed(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// Told of the platter after every operation that changes it.
pub type Observer = Box<dyn FnMut(&Platter) + Send>;

/// A disk to run on.
#[derive(Clone)]
pub struct SimulatedDisk {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    platter: Platter,
    observer: Option<Observer>,
    /// Operations left before one fails for want of room, and every one after it.
    room: Option<usize>,
    /// Files that are locked.
    locked: BTreeSet<PathBuf>,
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimulatedDisk")
    }
}

impl SimulatedDisk {
    /// On which this is.
    #[must_use]
    pub fn new(platter: Platter) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { platter, observer: None, room: None, locked: BTreeSet::new() })) }
    }

    /// Shows the platter to `observer` after every change from now on.
    pub fn observe(&self, observer: Observer) {
        self.inner().observer = Some(observer);
    }

    /// Lets writing fail after so many more operations, until [`SimulatedDisk::make_room`].
    pub fn fill_up_after(&self, operations: usize) {
        self.inner().room = Some(operations);
    }

    /// Lets writing succeed again.
    pub fn make_room(&self) {
        self.inner().room = None;
    }

    /// What is on it now.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn platter(&self) -> Platter {
        self.inner().platter.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look<T>(&self, look: impl FnOnce(&Platter) -> io::Result<T>) -> io::Result<T> {
        look(&self.inner().platter)
    }

    /// One operation that takes room.
    fn write<T>(&self, operate: impl FnOnce(&mut Platter) -> io::Result<T>) -> io::Result<T> {
        if let Some(left) = &mut self.inner().room {
            if *left == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *left -= 1;
        }
        self.change(operate)
    }

    /// One operation.
    fn change<T>(&self, operate: impl FnOnce(&mut Platter) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.inner();
        let done = operate(&mut inner.platter)?;
        if let Inner { platter, observer: Some(observer), .. } = &mut *inner {
            observer(platter);
        }
        Ok(done)
    }
}

impl Disk for SimulatedDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.look(|platter| match &platter.nodes[platter.find(path)?] {
            Node::File { current, .. } => Ok(current.clone()),
            Node::Directory { .. } => Err(io::ErrorKind::IsADirectory.into()),
        })
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let node = Node::File { durable: Vec::new(), current: Vec::new(), unsynced: Vec::new() };
        let number = self.write(|platter| platter.add(path, node))?;
        Ok(Box::new(SimulatedFile { disk: self.clone(), number }))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        match self.look(|platter| platter.find(path)) {
            Ok(number) => Ok(Box::new(SimulatedFile { disk: self.clone(), number })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.create(path),
            Err(e) => Err(e),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|platter| {
            let number = platter.find(from)?;
            let ((directory, from), (other, to)) = (platter.place(from)?, platter.place(to)?);
            assert_eq!(directory, other, "nothing here moves between directories");
            platter.change(directory, Change::Rename { from, to, number });
            Ok(())
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.write(|platter| {
            let number = platter.find(from)?;
            let (directory, name) = platter.place(to)?;
            if platter.names(directory)?.contains_key(&name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            platter.change(directory, Change::Set(name, number));
            Ok(())
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change(|platter| {
            platter.find(path)?;
            let (directory, name) = platter.place(path)?;
            platter.change(directory, Change::Remove(name));
            Ok(())
        })
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let node = Node::Directory { durable: Names::new(), current: Names::new(), unsynced: Vec::new() };
        self.write(|platter| platter.add(path, node).map(drop))
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let empty = self.look(|platter| Ok(platter.names(platter.find(path)?)?.is_empty()))?;
        if empty { self.remove_file(path) } else { Err(io::ErrorKind::DirectoryNotEmpty.into()) }
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.look(|platter| platter.names(platter.find(path)?).map(drop)).is_ok()
    }

    fn entries(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.look(|platter| {
            let names = platter.names(platter.find(path)?)?.iter();
            let is_directory = |number: &Number| matches!(platter.nodes[*number], Node::Directory { .. });
            Ok(names.map(|(name, number)| Entry { name: name.clone(), is_directory: is_directory(number) }).collect())
        })
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.change(|platter| {
            let number = platter.find(path)?;
            match &mut platter.nodes[number] {
                Node::Directory { durable, current, unsynced } => {
                    durable.clone_from(current);
                    unsynced.clear();
                    Ok(())
                }
                Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
            }
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let free = self.inner().locked.insert(path.to_owned());
        Ok(free.then(|| Box::new(Locked { disk: self.clone(), path: path.to_owned() }) as Lock))
    }
}

/// A file that is locked.
struct Locked {
    disk: SimulatedDisk,
    path: PathBuf,
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.disk.inner().locked.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    number: Number,
}

impl SimulatedFile {
    fn write(&self, write: impl FnOnce(usize) -> Write) -> impl FnOnce(&mut Platter) -> io::Result<()> {
        let number = self.number;
        move |platter| {
            if let Node::File { current, unsynced, .. } = &mut platter.nodes[number] {
                let write = write(current.len());
                write.apply(current);
                unsynced.push(write);
            }
            Ok(())
        }
    }
}

impl DiskFile for SimulatedFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        // In two, as a kernel may take it; a disk without room takes the first half.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let write = |bytes: &[u8]| {
            let bytes = bytes.to_vec();
            self.disk.write(self.write(|end| Write::At(end, bytes)))
        };
        write(first)?;
        write(second)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.disk.change(self.write(|_| Write::Truncate(length as usize)))
    }

    fn sync(&mut self) -> io::Result<()> {
        let number = self.number;
        self.disk.change(|platter| {
            if let Node::File { durable, current, unsynced } = &mut platter.nodes[number] {
                durable.clone_from(current);
                unsynced.clear();
            }
            Ok(())
        })
    }
}
