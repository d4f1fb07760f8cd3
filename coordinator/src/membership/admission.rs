//! Joining: who is let in.

use super::{
    Effect, Level, Phase, State, WorkerId,
    member::{Member, Standing},
};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{self, JoinRequest},
};

/// Longest name and ring address that a worker may give itself.
const MAX_NAME: usize = 256;

impl State {
    pub(super) fn join(&mut self, request: JoinRequest, now: u64, out: &mut Vec<Effect>) {
        if let Err(failure) = self.admissible(&request) {
            out.push(note(Level::Warn, format!("refused {:?}: {failure}", request.display_name)));
            out.push(Effect::Refuse(failure));
            return;
        }
        let worker = self.next_worker;
        self.next_worker += 1;
        out.push(note(Level::Info, format!("worker {worker} ({}) joined", request.display_name)));
        let member = Member {
            name: request.display_name,
            ring_address: request.ring_address,
            standing: Standing::Admitted,
            veteran: false,
            draining: None,
            expelled: false,
            joined_at: now,
            seen_at: now,
            progress: 0,
            phase: v1::Phase::Loading,
            moved_at: now,
        };
        self.members.insert(worker, member);
        out.push(Effect::Admit { worker });
    }

    fn admissible(&self, request: &JoinRequest) -> Result<(), Failure> {
        let fail = |code, message: String| Err(Failure::new(code, message));
        if request.version != self.settings.version {
            return fail(
                ErrorCode::VersionMismatch,
                format!(
                    "the worker is ballast {:?}, the coordinator {:?}: install the same version on both",
                    request.version, self.settings.version
                ),
            );
        }
        let fits = |text: &str| text.len() <= MAX_NAME && !text.chars().any(char::is_control);
        if !fits(&request.display_name) {
            return fail(
                ErrorCode::BadMessage,
                format!("display_name must be at most {MAX_NAME} bytes without control characters"),
            );
        }
        let has_port = request
            .ring_address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
        if !fits(&request.ring_address) || !has_port {
            return fail(
                ErrorCode::BadMessage,
                format!("ring_address {:?} is not of the form host:port", request.ring_address),
            );
        }
        if let Phase::Over(outcome) = &self.phase {
            return fail(ErrorCode::Interrupted, format!("the run is over: {}", outcome.reason));
        }
        if self.was_expelled(&request.display_name, &request.ring_address) {
            return fail(
                ErrorCode::TooSlow,
                format!(
                    "{:?} was asked to leave this run because it held the others up: use another machine, or raise \
                     cluster.slow_factor",
                    request.display_name
                ),
            );
        }
        if self.members.len() >= self.settings.workers {
            return fail(
                ErrorCode::RunFull,
                format!(
                    "the run already has its {} workers: raise cluster.workers, or try again when one has left",
                    self.settings.workers
                ),
            );
        }
        Ok(())
    }

    pub(super) fn connected(&mut self, worker: WorkerId, now: u64, out: &mut Vec<Effect>) {
        if self.members.get(&worker).is_some_and(|member| member.standing != Standing::Admitted) {
            self.misbehaved(worker, "opened a second session", now, out);
            return;
        }
        self.members.change(worker, |member| {
            member.standing = Standing::Loading;
            member.moved_at = now;
        });
    }
}

pub(super) fn note(level: Level, reason: String) -> Effect {
    Effect::Note { level, reason }
}
