//! The thread that ends a communicator.

use super::calls::{Progress, Raw};
use super::shared::Shared;
use super::state::Duty;
use super::stream::CommunicationStream;
use std::time::{Duration, Instant};

/// How long the other ranks may take to let a healthy communicator go; after that it is aborted.
pub(super) const LEAVE_LIMIT: Duration = Duration::from_secs(5);
const LEAVE_PAUSE: Duration = Duration::from_millis(1);

/// Watches until the communicator has failed or its owner is done, and ends it.
pub(super) fn watch(shared: &Shared, stream: &CommunicationStream) {
    if let Err(error) = stream.bind() {
        shared.device(error);
    }
    loop {
        match shared.duty() {
            Duty::Poll => poll(shared),
            Duty::Late { number, mark } => match mark.map(|mark| mark.is_passed()) {
                Some(Ok(true)) => shared.pass(number),
                Some(Err(error)) => drop(shared.device(error)),
                Some(Ok(false)) | None => shared.late(),
            },
            Duty::Abort => {
                shared.take().into_iter().for_each(|raw| abort(shared, raw));
                break;
            }
            Duty::Close => {
                shared.take().into_iter().for_each(|raw| leave(shared, raw));
                break;
            }
        }
    }
    shared.end();
}

/// A failure that NCCL has seen is recorded by the call itself.
fn poll(shared: &Shared) {
    let _ = shared.call(Raw::progress);
}

fn abort(shared: &Shared, raw: Raw) {
    if let Err(words) = raw.abort() {
        tracing::warn!(member = %shared.member, words, "nccl could not abort a communicator properly");
    }
}

/// Takes leave of the other ranks; where that is not possible in time, or is no longer wanted, aborts.
fn leave(shared: &Shared, raw: Raw) {
    let end = Instant::now() + LEAVE_LIMIT;
    let mut progress = raw.finalize();
    while progress == Ok(Progress::Underway) && Instant::now() < end && shared.pause(LEAVE_PAUSE).is_ok() {
        progress = raw.progress();
    }
    if progress != Ok(Progress::Done) {
        tracing::warn!(member = %shared.member, ?progress, "a communicator could not be finalized and is aborted");
        return abort(shared, raw);
    }
    if let Err(words) = raw.destroy() {
        tracing::warn!(member = %shared.member, words, "nccl could not free a communicator properly");
    }
}
