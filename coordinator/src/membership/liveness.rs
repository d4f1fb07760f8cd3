//! Leases and standstill: who is gone without saying so.

use super::{
    Effect, Phase, State, WorkerId,
    member::{Member, Standing},
};
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
        let phase = heartbeat.phase();
        self.members.change(worker, |member| {
            if heartbeat.progress != member.progress || phase != member.phase {
                member.progress = heartbeat.progress;
                member.phase = phase;
                member.moved_at = now;
            }
        });
    }

    pub(super) fn tick(&mut self, now: u64, out: &mut Vec<Effect>) {
        if self.is_over() {
            return;
        }
        let moved = self.members.values().map(|m| m.moved_at).max().unwrap_or(now);
        let mut faults: Vec<(Fault, u64, WorkerId)> =
            self.members.iter().filter_map(|(worker, member)| self.fault(*worker, member, moved, now)).collect();
        // The surest fault first, then the longest: the first loss of a training generation is the one that is named.
        faults.sort_unstable();
        for (fault, since, worker) in faults {
            let failure = self.describe(fault, worker, now.saturating_sub(since));
            match (fault, &self.generation) {
                // Nobody knows whose fault it is. Whoever does not come back is lost then.
                (Fault::Stuck, Some(active)) => self.generation_failed(worker, active.id, &failure.message, now, out),
                (Fault::Stuck, None) => {}
                _ => self.lose(worker, failure, now, out),
            }
        }
        if self.phase == Phase::Gathering {
            self.gather(now, out);
        }
    }

    /// What is wrong with a worker, and since when; `moved` is when any of them last moved.
    fn fault(&self, worker: WorkerId, member: &Member, moved: u64, now: u64) -> Option<(Fault, u64, WorkerId)> {
        let timeouts = &self.settings.timeouts;
        let over = |since: u64, limit: u64| now.saturating_sub(since) >= limit;
        let fault = |fault, since| Some((fault, since, worker));
        if member.standing == Standing::Admitted {
            let waited = over(member.joined_at, timeouts.lease_ms);
            return waited.then_some((Fault::NeverConnected, member.joined_at, worker));
        }
        if over(member.seen_at, timeouts.lease_ms) {
            return fault(Fault::Silent, member.seen_at);
        }
        if member.standing == Standing::Loading {
            let waited = over(member.joined_at, timeouts.load_ms);
            return waited.then_some((Fault::NotReady, member.joined_at, worker));
        }
        // It was called back, and does not come.
        if member.engaged() && self.phase == Phase::Gathering {
            return over(member.moved_at, timeouts.progress_ms).then_some((Fault::Hung, member.moved_at, worker));
        }
        match member.phase {
            v1::Phase::Compute | v1::Phase::Apply | v1::Phase::Evaluate
                if over(member.moved_at, timeouts.progress_ms) =>
            {
                fault(Fault::Hung, member.moved_at)
            }
            // Waiting for a slower rank is no fault, so a collective is stuck only when nobody at all moves.
            v1::Phase::Reduce if self.phase == Phase::Training => {
                over(moved, timeouts.progress_ms).then_some((Fault::Stuck, member.moved_at, worker))
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
