//! What is on a simulated disk, and what of it survives a crash.
//!
//! What is there and what is durable are kept apart. Writes that were not synced may survive in part: up to some byte, or any of
//! their sectors, the others reading as zeros or as rubbish. Names that were not synced may survive or not, in any combination;
//! only a rename is one change and not two.

use super::Dice;
use std::{
    collections::BTreeMap,
    io,
    path::{Component, Path},
};

/// Bytes that are written together or not at all. Small, so that small files have several.
const SECTOR: usize = 64;

/// A file or directory, by its number in [`Platter::nodes`].
pub(super) type Number = usize;
const ROOT: Number = 0;

#[derive(Clone, Debug)]
pub(super) enum Node {
    File { durable: Vec<u8>, current: Vec<u8>, unsynced: Vec<Write> },
    Directory { durable: Names, current: Names, unsynced: Vec<Change> },
}

pub(super) type Names = BTreeMap<String, Number>;

#[derive(Clone, Debug)]
pub(super) enum Write {
    At(usize, Vec<u8>),
    Truncate(usize),
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Set(String, Number),
    Remove(String),
    Rename { from: String, to: String, number: Number },
}

/// What is on the disk, and what of it would survive.
#[derive(Clone, Debug)]
pub struct Platter {
    pub(super) nodes: Vec<Node>,
}

impl Default for Platter {
    fn default() -> Self {
        let root = Node::Directory { durable: Names::new(), current: Names::new(), unsynced: Vec::new() };
        Self { nodes: vec![root] }
    }
}

impl Platter {
    /// What a crash now may leave, by these dice.
    pub fn crash(&self, dice: &mut Dice) -> Self {
        let outcome = match dice.below(4) {
            0 => Outcome::Nothing,
            1 => Outcome::Everything,
            2 => Outcome::Prefix,
            _ => Outcome::Subset,
        };
        Self { nodes: self.nodes.iter().map(|node| node.crash(outcome, dice)).collect() }
    }

    pub(super) fn names(&self, directory: Number) -> io::Result<&Names> {
        match &self.nodes[directory] {
            Node::Directory { current, .. } => Ok(current),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<Number> {
        path.components().filter(|c| *c != Component::RootDir).try_fold(ROOT, |number, component| {
            let name = component.as_os_str().to_string_lossy();
            self.names(number)?.get(&*name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    /// The directory of a path, and the path's name in it.
    pub(super) fn place(&self, path: &Path) -> io::Result<(Number, String)> {
        let directory = self.find(path.parent().unwrap_or(path))?;
        self.names(directory)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((directory, name.to_string_lossy().into_owned()))
    }

    pub(super) fn change(&mut self, directory: Number, change: Change) {
        if let Node::Directory { current, unsynced, .. } = &mut self.nodes[directory] {
            change.apply(current);
            unsynced.push(change);
        }
    }

    pub(super) fn add(&mut self, path: &Path, node: Node) -> io::Result<Number> {
        let (directory, name) = self.place(path)?;
        if self.names(directory)?.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.nodes.push(node);
        let number = self.nodes.len() - 1;
        self.change(directory, Change::Set(name, number));
        Ok(number)
    }
}

/// How what was not synced fares.
#[derive(Clone, Copy)]
enum Outcome {
    Nothing,
    Everything,
    /// The first changes, the last of them torn.
    Prefix,
    /// Any of them, in parts.
    Subset,
}

impl Node {
    fn crash(&self, outcome: Outcome, dice: &mut Dice) -> Self {
        match self {
            Self::File { durable, current, unsynced } => {
                let left = match outcome {
                    Outcome::Nothing => durable.clone(),
                    Outcome::Everything => current.clone(),
                    Outcome::Prefix => first_of(durable, unsynced, dice),
                    Outcome::Subset => some_of(durable, unsynced, dice),
                };
                Self::File { durable: left.clone(), current: left, unsynced: Vec::new() }
            }
            Self::Directory { durable, current, unsynced } => {
                let mut left = durable.clone();
                match outcome {
                    Outcome::Nothing => {}
                    Outcome::Everything => left.clone_from(current),
                    Outcome::Prefix => {
                        unsynced.iter().take(dice.below(unsynced.len() + 1)).for_each(|change| change.apply(&mut left));
                    }
                    Outcome::Subset => {
                        unsynced.iter().filter(|_| dice.coin()).for_each(|change| change.apply(&mut left))
                    }
                }
                Self::Directory { durable: left.clone(), current: left, unsynced: Vec::new() }
            }
        }
    }
}

impl Change {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Set(name, number) => {
                names.insert(name.clone(), *number);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Rename { from, to, number } => {
                names.remove(from);
                names.insert(to.clone(), *number);
            }
        }
    }
}

impl Write {
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::At(offset, written) => {
                let end = offset + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(written);
            }
            Self::Truncate(length) => bytes.truncate(*length),
        }
    }
}

/// The first writes whole, and of the next one the first bytes.
fn first_of(durable: &[u8], unsynced: &[Write], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = durable.to_vec();
    let whole = dice.below(unsynced.len() + 1);
    unsynced.iter().take(whole).for_each(|write| write.apply(&mut bytes));
    if let Some(Write::At(offset, written)) = unsynced.get(whole) {
        Write::At(*offset, written[..dice.below(written.len() + 1)].to_vec()).apply(&mut bytes);
    }
    bytes
}

/// Any sectors of any writes. What lies before a sector that was written and was not written itself holds zeros or rubbish.
fn some_of(durable: &[u8], unsynced: &[Write], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = durable.to_vec();
    for write in unsynced {
        match write {
            Write::Truncate(_) if dice.coin() => write.apply(&mut bytes),
            Write::Truncate(_) => {}
            Write::At(offset, written) => {
                let filler = if dice.coin() { 0 } else { 0xa5 };
                let mut at = 0;
                while at < written.len() {
                    let end = written.len().min(at + SECTOR - (offset + at) % SECTOR);
                    if dice.coin() {
                        let start = offset + at;
                        if bytes.len() < start {
                            bytes.resize(start, filler);
                        }
                        Write::At(start, written[at..end].to_vec()).apply(&mut bytes);
                    }
                    at = end;
                }
            }
        }
    }
    bytes
}
