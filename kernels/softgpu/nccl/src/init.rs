//! Ids, and the life of communicators.

use std::{
    ffi::{c_char, c_int},
    sync::Arc,
    thread,
};

use crate::{
    abi::{Failure, Handle, Outcome, failed, in_group, outcome, put},
    communicator::{self, Communicator, Phase},
    driver::driver,
    fault, hub,
    wire::{Hello, MAGIC, Secret},
};

/// `ncclUniqueId`: magic, port and secret of a hub; the rest is zero.
#[repr(C)]
struct UniqueId {
    bytes: [u8; 128],
}

impl UniqueId {
    fn new(port: u16, secret: &Secret) -> Self {
        let mut bytes = [0; 128];
        let parts = [&MAGIC[..], &port.to_le_bytes(), secret].concat();
        bytes[..parts.len()].copy_from_slice(&parts);
        Self { bytes }
    }

    fn parse(&self) -> Option<(u16, Secret)> {
        let rest = self.bytes.strip_prefix(&MAGIC)?;
        let (port, rest) = rest.split_first_chunk()?;
        Some((u16::from_le_bytes(*port), *rest.first_chunk()?))
    }
}

/// The first fields of `ncclConfig_t`, which all its versions share.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    /// Cluster size, fewest and most thread blocks.
    tuning: [c_int; 3],
    network: *const c_char,
    split_share: c_int,
}

const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// The first version with a configuration, and the first that is not NCCL 2.
const CONFIG_VERSIONS: std::ops::Range<u32> = 2_14_00..3_00_00;
/// A field that was left alone.
const UNDEFINED: c_int = c_int::MIN;

impl Config {
    /// Whether calls block; refuses a configuration that was not set up as it must be.
    fn blocking(&self) -> Result<bool, Failure> {
        let bad = |what: &str| Err(failed(Failure::InvalidArgument, &format!("ncclConfig_t: {what}")));
        if self.magic != CONFIG_MAGIC || !CONFIG_VERSIONS.contains(&self.version) {
            return bad("wrong magic or version");
        }
        if self.size < size_of::<Self>() {
            return bad("wrong size");
        }
        if self.tuning.iter().any(|&value| value != UNDEFINED && value < 0) || !self.network.is_null() {
            return bad("a field is neither undefined nor sensible");
        }
        if ![UNDEFINED, 0, 1].contains(&self.split_share) {
            return bad("splitShare is neither undefined nor 0 or 1");
        }
        match self.blocking {
            UNDEFINED | 1 => Ok(true),
            0 => Ok(false),
            _ => bad("blocking is neither undefined nor 0 or 1"),
        }
    }
}

/// Opens a hub in this process, which must live as long as the communicator.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> Outcome {
    match hub::open() {
        // SAFETY: the caller passes a valid pointer.
        Ok((port, secret)) => outcome(unsafe { put(id, UniqueId::new(port, &secret)) }),
        Err(error) => failed(Failure::SystemError, &format!("no hub: {error}")) as Outcome,
    }
}

fn init(ranks: c_int, id: &UniqueId, rank: c_int, blocking: bool) -> Result<Handle, Failure> {
    if let Some(message) = fault::refused() {
        return Err(failed(Failure::InvalidArgument, message));
    }
    if in_group() {
        return Err(failed(Failure::InvalidUsage, "communicators are made one by one, not in groups"));
    }
    let (port, secret) = id.parse().ok_or(Failure::InvalidArgument)?;
    let sizes = (u32::try_from(ranks).ok(), u32::try_from(rank).ok());
    let (Some(ranks), Some(rank)) = sizes else { return Err(Failure::InvalidArgument) };
    if rank >= ranks {
        return Err(Failure::InvalidArgument);
    }
    let driver = driver().ok_or_else(|| failed(Failure::UnhandledCudaError, "no software device is loaded"))?;
    let hello = Hello { secret, ranks, rank, process: std::process::id() };
    let communicator = Arc::new(Communicator::new(driver, hello, blocking)?);
    let starting = Arc::clone(&communicator);
    if blocking {
        starting.start(port, hello);
        if let Phase::Failed(failure) = communicator.phase() {
            return Err(failure);
        }
    } else {
        thread::spawn(move || starting.start(port, hello));
    }
    Ok(communicator::insert(communicator))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRank(place: *mut Handle, ranks: c_int, id: UniqueId, rank: c_int) -> Outcome {
    // SAFETY: the caller passes a valid pointer.
    outcome(init(ranks, &id, rank, true).and_then(|handle| unsafe { put(place, handle) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRankConfig(
    place: *mut Handle,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *const Config,
) -> Outcome {
    let make = || {
        // SAFETY: null, or a configuration, which begins with these fields.
        let blocking = unsafe { config.as_ref() }.map_or(Ok(true), Config::blocking)?;
        let handle = init(ranks, &id, rank, blocking)?;
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(place, handle) }?;
        if blocking { Ok(()) } else { Err(Failure::InProgress) }
    };
    outcome(make())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommGetAsyncError(communicator: Handle, state: *mut Outcome) -> Outcome {
    outcome(communicator::get(communicator).and_then(|communicator| {
        let code = match communicator.phase() {
            Phase::Ready if communicator.settle() => Failure::InProgress as Outcome,
            Phase::Starting | Phase::Finalizing => Failure::InProgress as Outcome,
            Phase::Ready | Phase::Finalized => 0,
            Phase::Failed(failure) => failure as Outcome,
            Phase::Aborted => Failure::InvalidArgument as Outcome,
        };
        // SAFETY: the caller passes a valid pointer.
        unsafe { put(state, code) }
    }))
}

/// Returns at once, also while a collective hangs. The communicator is gone afterwards.
#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(communicator: Handle) -> Outcome {
    outcome(communicator::remove(communicator).map(|communicator| communicator.abort()))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommFinalize(communicator: Handle) -> Outcome {
    let finalize = || {
        let communicator = communicator::get(communicator)?;
        communicator.begin_finalize()?;
        if communicator.blocking {
            communicator.finish();
            return settled(&communicator);
        }
        thread::spawn(move || communicator.finish());
        Err(Failure::InProgress)
    };
    outcome(finalize())
}

/// Finalizes first, and waits for it, if that was not done.
#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(communicator: Handle) -> Outcome {
    let destroy = || {
        let found = communicator::get(communicator)?;
        match found.phase() {
            Phase::Starting | Phase::Finalizing => {
                return Err(failed(Failure::InvalidArgument, "ncclCommDestroy while an operation is in progress"));
            }
            Phase::Ready => {
                found.begin_finalize()?;
                found.finish();
            }
            Phase::Finalized | Phase::Failed(_) | Phase::Aborted => {}
        }
        communicator::remove(communicator)?;
        settled(&found)
    };
    outcome(destroy())
}

fn settled(communicator: &Communicator) -> Result<(), Failure> {
    match communicator.phase() {
        Phase::Failed(failure) => Err(failure),
        _ => Ok(()),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommCount(communicator: Handle, count: *mut c_int) -> Outcome {
    // SAFETY: the caller passes a valid pointer.
    outcome(communicator::get(communicator).and_then(|found| unsafe { put(count, found.ranks as c_int) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommUserRank(communicator: Handle, rank: *mut c_int) -> Outcome {
    // SAFETY: the caller passes a valid pointer.
    outcome(communicator::get(communicator).and_then(|found| unsafe { put(rank, found.rank as c_int) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommCuDevice(communicator: Handle, device: *mut c_int) -> Outcome {
    // SAFETY: the caller passes a valid pointer.
    outcome(communicator::get(communicator).and_then(|found| unsafe { put(device, found.device) }))
}
