//! Shared memory of a block, and what a race checker knows of each part of it.
//!
//! Two accesses to one place race if different threads make them, one writes, and no barrier orders them. The block
//! counts barriers as `time`; `met[v][w]` is the last time at which warps `v` and `w` both passed one. An access at
//! time `t` by a thread of `v` is ordered before one by a thread of `w` now if `t < met[v][w]`. Within a warp
//! `bar.warp.sync` counts as a barrier. Places are two bytes long; single bytes are exempt from the race check.

use super::Problem;
use crate::{Checks, Counters, FaultKind};
use std::ops::Range;

/// Nobody yet.
const NONE: u16 = u16::MAX;
/// Several warps.
const MANY: u16 = u16::MAX - 1;
/// Several lanes of the warp in the low bits.
const SEVERAL: u16 = 1 << 15;
/// The writer is a `cp.async` that has not been waited for.
const PENDING: u16 = 1 << 14;
/// The writer was an atomic.
const ATOMIC: u16 = 1 << 13;
/// Thread number in a writer.
const THREAD: u16 = ATOMIC - 1;
/// Content of memory that nobody wrote.
const POISON: u8 = 0xFF;

/// Bytes that one place of the shadow stands for.
const PLACE: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    write_time: u32,
    read_time: u32,
    writer: u16,
    reader: u16,
}

/// The thread that makes an access.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thread {
    pub(crate) warp: usize,
    pub(crate) lane: usize,
}

impl Thread {
    fn number(self) -> u16 {
        (self.warp * 32 + self.lane) as u16
    }
}

/// What a store does to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    Plain,
    Atomic,
    /// `cp.async` is issued: the bytes will come later.
    Begin,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) bytes: Vec<u8>,
    places: Vec<Place>,
    time: u32,
    /// `met[v * warps + w]`
    met: Vec<u32>,
    warps: usize,
    checks: Checks,
}

impl Shared {
    pub(crate) fn new(bytes: usize, warps: usize, checks: Checks) -> Self {
        let place = Place { write_time: 0, read_time: 0, writer: NONE, reader: NONE };
        Self {
            bytes: vec![POISON; bytes],
            places: vec![place; bytes.div_ceil(PLACE)],
            time: 1,
            met: vec![0; warps * warps],
            warps,
            checks,
        }
    }

    /// All warps of the set pass a barrier together.
    pub(crate) fn synchronize(&mut self, set: u32) {
        self.time += 1;
        for v in super::lanes(set) {
            for w in super::lanes(set) {
                self.met[v * self.warps + w] = self.time;
            }
        }
    }

    /// Checks place and alignment of an access.
    pub(crate) fn check_bounds(&self, lane: usize, address: u64, bytes: u64, word: &str) -> Result<(), Problem> {
        let size = self.bytes.len() as u64;
        if address.checked_add(bytes).is_none_or(|end| end > size) {
            let detail =
                format!("illegal {word} of {bytes} bytes at shared address {address:#x}: the block has {size} bytes");
            return Err(Problem::at_lane(FaultKind::IllegalAddress, lane as u32, detail));
        }
        if !address.is_multiple_of(bytes) {
            let detail = format!("{word} at shared address {address:#x}, which is not a multiple of {bytes}");
            return Err(Problem::at_lane(FaultKind::Misaligned, lane as u32, detail));
        }
        Ok(())
    }

    /// Notes a read of `bytes` bytes that are in bounds.
    pub(crate) fn on_read(&mut self, thread: Thread, address: u64, bytes: u64) -> Result<(), Problem> {
        for range in self.alike(address, bytes) {
            let (at, place) = (range.start, self.places[range.start]);
            self.refuse_pending(place, thread, at)?;
            if place.writer == NONE {
                if self.checks.uninitialized {
                    let detail = format!("shared address {:#x} is read before anybody wrote it", at * PLACE);
                    return Err(Problem::at_lane(FaultKind::Uninitialized, thread.lane as u32, detail));
                }
            } else if bytes > 1 && !self.is_ordered(place.writer & THREAD, place.write_time, thread) {
                return self.race(thread, at, "read", "written", place.writer & THREAD);
            }
            let reader = self.joint_reader(place, thread);
            self.places[range].fill(Place { reader, read_time: self.time, ..place });
        }
        Ok(())
    }

    /// The places of an access: one range if all are in the same state (the usual case), else one for each.
    fn alike(&self, address: u64, bytes: u64) -> impl Iterator<Item = Range<usize>> + use<> {
        let range = places(address, bytes);
        let states = &self.places[range.clone()];
        let alike = states.iter().all(|state| *state == states[0]);
        let step = if alike { range.len() } else { 1 };
        range.step_by(step).map(move |at| at..at + step)
    }

    /// An atomic reads what it changes: somebody must have written it.
    pub(crate) fn check_written(&self, thread: Thread, address: u64, bytes: u64) -> Result<(), Problem> {
        match places(address, bytes).find(|&at| self.places[at].writer == NONE && self.checks.uninitialized) {
            Some(at) => {
                let detail = format!("shared address {:#x} is changed before anybody wrote it", at * PLACE);
                Err(Problem::at_lane(FaultKind::Uninitialized, thread.lane as u32, detail))
            }
            None => Ok(()),
        }
    }

    /// Notes a write of `bytes` bytes that are in bounds. `same` says whether it changes nothing: threads may agree.
    pub(crate) fn on_write(
        &mut self,
        thread: Thread,
        address: u64,
        bytes: u64,
        same: bool,
        writing: Writing,
    ) -> Result<(), Problem> {
        for range in self.alike(address, bytes) {
            let (at, place) = (range.start, self.places[range.start]);
            self.refuse_pending(place, thread, at)?;
            let atomics = writing == Writing::Atomic && place.writer & ATOMIC != 0;
            let agrees = same || atomics || bytes == 1 || place.writer == NONE;
            if !agrees && !self.is_ordered(place.writer & THREAD, place.write_time, thread) {
                return self.race(thread, at, "written", "written", place.writer & THREAD);
            }
            if !same && bytes > 1 && !self.reader_is_ordered(place, thread) {
                return self.race(thread, at, "written", "read", place.reader);
            }
            let flag = match writing {
                Writing::Plain => 0,
                Writing::Atomic => ATOMIC,
                Writing::Begin => PENDING,
            };
            let writer = thread.number() | flag;
            self.places[range].fill(Place { write_time: self.time, read_time: 0, writer, reader: NONE });
        }
        if writing == Writing::Begin {
            self.bytes[address as usize..(address + bytes) as usize].fill(POISON);
        }
        Ok(())
    }

    /// A `cp.async` has been waited for: its bytes arrive, written by `thread` now.
    pub(crate) fn arrive(&mut self, thread: Thread, address: u64, data: &[u8]) {
        self.bytes[address as usize..address as usize + data.len()].copy_from_slice(data);
        for at in places(address, data.len() as u64) {
            self.places[at].writer = thread.number();
            self.places[at].write_time = self.time;
        }
    }

    fn refuse_pending(&self, place: Place, thread: Thread, at: usize) -> Result<(), Problem> {
        if place.writer == NONE || place.writer & PENDING == 0 || !self.checks.asynchronous {
            return Ok(());
        }
        let detail = format!(
            "shared address {:#x} is touched while a cp.async of thread {} is writing it",
            at * PLACE,
            place.writer & THREAD
        );
        Err(Problem::at_lane(FaultKind::AsyncPending, thread.lane as u32, detail))
    }

    /// Whether what thread number `prior` did at `time` comes before what `thread` does now.
    fn is_ordered(&self, prior: u16, time: u32, thread: Thread) -> bool {
        !self.checks.races
            || prior == thread.number()
            || time < self.met[usize::from(prior / 32) * self.warps + thread.warp]
    }

    fn reader_is_ordered(&self, place: Place, thread: Thread) -> bool {
        match place.reader {
            NONE => true,
            MANY => {
                !self.checks.races || (0..self.warps).all(|v| place.read_time < self.met[v * self.warps + thread.warp])
            }
            several if several & SEVERAL != 0 => {
                let warp = usize::from(several & !SEVERAL);
                !self.checks.races || place.read_time < self.met[warp * self.warps + thread.warp]
            }
            reader => self.is_ordered(reader, place.read_time, thread),
        }
    }

    /// Who has read a place, once `thread` has too.
    fn joint_reader(&self, place: Place, thread: Thread) -> u16 {
        let own = thread.number();
        if place.reader == NONE || place.reader == own {
            return own;
        }
        let warp = match place.reader {
            MANY => None,
            several if several & SEVERAL != 0 => Some(usize::from(several & !SEVERAL)),
            reader => Some(usize::from(reader / 32)),
        };
        match warp {
            Some(warp) if warp == thread.warp => SEVERAL | warp as u16,
            Some(warp) if place.read_time < self.met[warp * self.warps + thread.warp] => own,
            _ => MANY,
        }
    }

    fn race(&self, thread: Thread, at: usize, now: &str, before: &str, other: u16) -> Result<(), Problem> {
        let other = match other {
            MANY => "several threads".to_owned(),
            several if several & SEVERAL != 0 => format!("several lanes of warp {}", several & !SEVERAL),
            thread => format!("thread {thread}"),
        };
        let detail = format!(
            "race: shared address {:#x} is {now}, and {other} has {before} it with no barrier between",
            at * PLACE
        );
        Err(Problem::at_lane(FaultKind::Race, thread.lane as u32, detail))
    }
}

fn places(address: u64, bytes: u64) -> Range<usize> {
    let (start, end) = (address as usize, (address + bytes) as usize);
    start / PLACE..end.div_ceil(PLACE)
}

/// Counts one request: the passes over the 32 banks of 4 bytes that it needs beyond the fewest possible. Accesses of
/// 8 and 16 bytes a lane are served in halves and quarters of a warp.
pub(crate) fn count(counters: &mut Counters, addresses: &[u64; 32], mask: u32, bytes: u64) {
    counters.shared_requests += 1;
    let lanes_per_pass = match bytes {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    let group = u32::MAX >> (32 - lanes_per_pass);
    for pass in 0..32 / lanes_per_pass {
        let members = mask & group << (pass * lanes_per_pass);
        counters.shared_conflicts += u64::from(conflicts(addresses, members, bytes));
    }
}

/// Passes beyond the first that the lanes of `members` need: the most distinct words in one bank, less one.
fn conflicts(addresses: &[u64; 32], members: u32, bytes: u64) -> u32 {
    // A pass touches at most 32 words.
    let (mut words, mut length, mut banks, mut clash) = ([0_u32; 32], 0, 0_u32, false);
    for lane in super::lanes(members) {
        let first = (addresses[lane] / 4) as u32;
        for word in first..first + bytes.div_ceil(4) as u32 {
            words[length] = word;
            length += 1;
            clash |= banks >> (word % 32) & 1 == 1;
            banks |= 1 << (word % 32);
        }
    }
    if !clash {
        return 0;
    }
    let words = &mut words[..length];
    words.sort_unstable();
    let (mut used, mut last) = ([0_u32; 32], None);
    for &mut word in words {
        used[word as usize % 32] += u32::from(last != Some(word));
        last = Some(word);
    }
    used.iter().max().map_or(0, |most| most.saturating_sub(1))
}
