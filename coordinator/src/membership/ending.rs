//! Losses, failures, requested stops, and the end of the run.

use super::{Effect, Level, Outcome, Phase, State, WorkerId, admission::note};
use ballast_proto::{
    ErrorCode, Failure, exit,
    v1::{AbortGeneration, Generation, Goodbye, StopAfter, coordinator_message::Message},
};

impl State {
    /// A worker broke the protocol: it is out.
    pub(super) fn misbehaved(&mut self, worker: WorkerId, what: &str, out: &mut Vec<Effect>) {
        let failure = Failure::new(ErrorCode::BadMessage, format!("{} {what}", self.label(worker)));
        self.lose(worker, failure, out);
    }

    pub(super) fn generation_failed(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        reason: &str,
        out: &mut Vec<Effect>,
    ) {
        if self.generation.as_ref().is_some_and(|active| active.id == generation) {
            let message = format!("{} cannot go on in generation {generation}: {reason}", self.label(worker));
            self.give_up(Failure::new(ErrorCode::CollectiveFailed, message), out);
        }
    }

    pub(super) fn leaving(&mut self, worker: WorkerId, failure: Option<Failure>, out: &mut Vec<Effect>) {
        let label = self.label(worker);
        let failure = match failure {
            None => Failure::new(ErrorCode::WorkerLost, format!("{label} left the run")),
            Some(failure) => Failure::new(failure.code, format!("{label} left the run: {}", failure.message)),
        };
        self.lose(worker, failure, out);
    }

    pub(super) fn disconnected(&mut self, worker: WorkerId, out: &mut Vec<Effect>) {
        let message = format!("the connection of {} broke", self.label(worker));
        self.lose(worker, Failure::new(ErrorCode::WorkerLost, message), out);
    }

    /// Removes a worker. What that means for the run depends on whether it had a rank.
    pub(super) fn lose(&mut self, worker: WorkerId, failure: Failure, out: &mut Vec<Effect>) {
        if self.members.remove(&worker).is_none() {
            return;
        }
        out.push(Effect::Dismiss { worker, failure: failure.clone() });
        if self.is_over() {
            return;
        }
        out.push(note(Level::Warn, failure.message.clone()));
        let ranked = self.generation.as_ref().is_some_and(|g| g.rank_of(worker).is_some());
        match self.phase {
            Phase::Gathering if self.settings.replaceable => {}
            Phase::Evaluating if ranked => {
                out.push(Effect::Requeue { worker });
                if !self.has_ranked_member() {
                    self.give_up(failure, out);
                }
            }
            Phase::Gathering => self.give_up(failure, out),
            Phase::Training if ranked => self.give_up(failure, out),
            Phase::Training | Phase::Evaluating | Phase::Over(_) => {}
        }
    }

    fn has_ranked_member(&self) -> bool {
        self.generation.as_ref().is_some_and(|g| g.ranks.iter().any(|w| self.members.contains_key(w)))
    }

    /// The generation is lost. The policy is to stop: whoever restarts the run resumes from its newest checkpoint.
    fn give_up(&mut self, failure: Failure, out: &mut Vec<Effect>) {
        self.abort_generation(&failure.message, out);
        self.fail(failure, out);
    }

    /// Tells all ranks at once, so that none waits in a collective for its own timeout.
    fn abort_generation(&mut self, reason: &str, out: &mut Vec<Effect>) {
        if self.phase != Phase::Training {
            return;
        }
        let Some(active) = &self.generation else { return };
        for worker in active.ranks.iter().filter(|w| self.members.contains_key(w)) {
            let abort = AbortGeneration { generation: Some(active.id), reason: reason.to_owned() };
            out.push(Effect::Send { worker: *worker, message: Message::AbortGeneration(abort) });
        }
    }

    /// Ends the run with a failure. A passing one is worth a restart only where a checkpoint keeps what was done.
    pub(super) fn fail(&mut self, failure: Failure, out: &mut Vec<Effect>) {
        if self.is_over() {
            return;
        }
        let exit_code = match failure.code.exit_code() {
            exit::RETRY if self.checkpoint.is_none() => exit::FAILED,
            code => code,
        };
        let reason = match (exit_code, self.checkpoint) {
            (exit::RETRY, Some(step)) => {
                format!("{}; start the run again to resume from the checkpoint of step {step}", failure.message)
            }
            _ => failure.message.clone(),
        };
        self.finish(Outcome { exit_code, reason, failure: Some(failure) }, out);
    }

    /// Training goes on to a step that no rank has passed: the first whose shards are not yet streamed, so that they
    /// can carry the order to upload a checkpoint. A second request does not wait.
    pub(super) fn stop_requested(&mut self, reason: &str, out: &mut Vec<Effect>) {
        let again = self.stop.is_some();
        match self.phase {
            Phase::Training if !again => {
                let step = (self.horizon() + 1).min(self.settings.total_steps);
                self.stop = Some((reason.to_owned(), step));
                out.push(note(Level::Info, format!("{reason}: stopping after step {step}, with a checkpoint")));
                let Some(active) = &self.generation else { return };
                for worker in &active.ranks {
                    let stop = StopAfter { generation: Some(active.id), step };
                    out.push(Effect::Send { worker: *worker, message: Message::StopAfter(stop) });
                }
                self.conclude_training(out);
            }
            Phase::Training => {
                let message = format!("{reason}, again: stopped at once, in step {}", self.committed + 1);
                self.give_up(Failure::new(ErrorCode::Interrupted, message), out);
            }
            Phase::Gathering | Phase::Evaluating => self.finish(stopped(reason, self.committed), out),
            Phase::Over(_) => {}
        }
    }

    /// Everything asked for is done.
    pub(super) fn complete(&mut self, out: &mut Vec<Effect>) {
        let reason = format!("the run is complete after step {}", self.committed);
        self.finish(Outcome { exit_code: exit::DONE, reason, failure: None }, out);
    }

    /// Dismisses everyone and closes the books.
    pub(super) fn finish(&mut self, outcome: Outcome, out: &mut Vec<Effect>) {
        for worker in self.members.keys() {
            let goodbye = Goodbye { reason: outcome.reason.clone(), exit_code: outcome.exit_code.into() };
            out.push(Effect::Send { worker: *worker, message: Message::Goodbye(goodbye) });
        }
        let level = if outcome.exit_code == exit::DONE { Level::Info } else { Level::Warn };
        out.push(note(level, outcome.reason.clone()));
        out.push(Effect::Finish(outcome.clone()));
        self.phase = Phase::Over(outcome);
    }
}

/// The outcome of a requested stop.
pub(super) fn stopped(reason: &str, step: u64) -> Outcome {
    let message = format!("{reason}: stopped after step {step}; start the run again to resume");
    Outcome {
        exit_code: exit::RETRY,
        reason: message.clone(),
        failure: Some(Failure::new(ErrorCode::Interrupted, message)),
    }
}
