//! File descriptors: a coordinator has one for each connection, and what a process may open by default is made for small programs.

use ballast_coordinator::server::Limits;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Those that are no connections: the ledger, checkpoints that are read, the runtime.
const OWN: u64 = 128;

/// Lets this process open as many as it is allowed to; what to do, in words, where that is less than `limits` may take.
pub(crate) fn make_room(limits: &Limits) -> Option<String> {
    let needed = (limits.connections + limits.strangers) as u64 + OWN;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft < needed && soft < hard {
        // What is refused leaves everything as it was; the message then tells what that is.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, needed.min(hard), hard);
    }
    let (allowed, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    short_of(needed, allowed)
}

fn short_of(needed: u64, allowed: u64) -> Option<String> {
    (allowed < needed).then(|| {
        format!(
            "this process may open {allowed} files, and its connections may take up to {needed}: raise the limit (`ulimit -Hn`, \
             LimitNOFILE= of a systemd unit) or lower cluster.workers"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        assert_eq!(short_of(1024, 1024), None);
        let said = short_of(12_000, 4096).unwrap();
        assert!(said.contains("may open 4096 files") && said.contains("up to 12000"), "{said}");
    }

    #[test]
    fn a_small_run_has_room() {
        assert_eq!(make_room(&Limits::of(2)), None);
    }
}
