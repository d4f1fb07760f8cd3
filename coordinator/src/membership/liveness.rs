//! Leases and standstill: who is gone without saying so.

use super::{Effect, Phase, State, WorkerId};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{self, Heartbeat},
};

/// Why a worker is given up, in order of certainty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// It never opened its session.
    NeverConnected,
    /// No message within the lease.
    Silent,
    /// Its computation does not move.
    Hung,
    /// It waits in a collective in which nobody moves.
    Stuck,
    /// It does not become ready.
    NotReady,
}

impl State {
    pub(super) fn heartbeat(&mut self, worker: WorkerId, heartbeat: Heartbeat, now: u64) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        let phase = heartbeat.phase();
        if heartbeat.progress != member.progress || phase != member.phase {
            member.progress = heartbeat.progress;
            member.phase = phase;
            member.moved_at = now;
        }
    }

    pub(super) fn tick(&mut self, now: u64, out: &mut Vec<Effect>) {
        if self.is_over() {
            return;
        }
        let mut faults: Vec<(Fault, u64, WorkerId)> =
            self.members.keys().filter_map(|worker| self.fault(*worker, now)).collect();
        // The surest fault first, then the longest: the first loss of a training generation is the one that is named.
        faults.sort_unstable();
        for (fault, since, worker) in faults {
            let failure = self.describe(fault, worker, now.saturating_sub(since));
            self.lose(worker, failure, out);
        }
    }

    /// What is wrong with a worker, and since when.
    fn fault(&self, worker: WorkerId, now: u64) -> Option<(Fault, u64, WorkerId)> {
        let member = self.members.get(&worker)?;
        let timeouts = &self.settings.timeouts;
        let over = |since: u64, limit: u64| now.saturating_sub(since) >= limit;
        let fault = |fault, since| Some((fault, since, worker));
        if !member.connected {
            return if over(member.joined_at, timeouts.lease_ms) {
                fault(Fault::NeverConnected, member.joined_at)
            } else {
                None
            };
        }
        if over(member.seen_at, timeouts.lease_ms) {
            return fault(Fault::Silent, member.seen_at);
        }
        if !member.ready {
            return if over(member.joined_at, timeouts.load_ms) {
                fault(Fault::NotReady, member.joined_at)
            } else {
                None
            };
        }
        if !matches!(self.phase, Phase::Training | Phase::Evaluating) {
            return None;
        }
        match member.phase {
            v1::Phase::Compute | v1::Phase::Apply | v1::Phase::Evaluate
                if over(member.moved_at, timeouts.progress_ms) =>
            {
                fault(Fault::Hung, member.moved_at)
            }
            // Waiting for a slower rank is no fault, so a collective is stuck only when nobody at all moves.
            v1::Phase::Reduce => {
                let moved = self.members.values().map(|m| m.moved_at).max().unwrap_or(now);
                if over(moved, timeouts.progress_ms) { fault(Fault::Stuck, member.moved_at) } else { None }
            }
            _ => None,
        }
    }

    fn describe(&self, fault: Fault, worker: WorkerId, for_ms: u64) -> Failure {
        let label = self.label(worker);
        let timeouts = &self.settings.timeouts;
        let message = match fault {
            Fault::NeverConnected => format!("{label} joined but opened no session for {for_ms} ms"),
            Fault::Silent => {
                format!("{label} was silent for {for_ms} ms (cluster.lease_ms is {})", timeouts.lease_ms)
            }
            Fault::Hung => {
                format!(
                    "the computation of {label} stood still for {for_ms} ms (cluster.progress_ms is {})",
                    timeouts.progress_ms
                )
            }
            Fault::Stuck => {
                format!(
                    "{label} waited {for_ms} ms in a collective in which nobody moved (cluster.progress_ms is {})",
                    timeouts.progress_ms
                )
            }
            Fault::NotReady => {
                format!("{label} was not ready {for_ms} ms after joining (cluster.load_ms is {})", timeouts.load_ms)
            }
        };
        Failure::new(ErrorCode::LeaseExpired, message)
    }
}
