//! Losses, failures, requested stops, and the end of the run.

use super::{Effect, Level, Outcome, Phase, State, WorkerId, admission::note, member::Member, state::ActiveGeneration};
use ballast_proto::{
    ErrorCode, Failure, exit,
    v1::{AbortGeneration, Generation, Goodbye, StopAfter, coordinator_message::Message},
};

/// So many generations in succession may fail before any of them commits a step.
const MOST_FRUITLESS: u32 = 16;

impl State {
    /// A worker broke the protocol: it is out.
    pub(super) fn misbehaved(&mut self, worker: WorkerId, what: &str, now: u64, out: &mut Vec<Effect>) {
        let failure = Failure::new(ErrorCode::BadMessage, format!("{} {what}", self.label(worker)));
        self.lose(worker, failure, now, out);
    }

    pub(super) fn generation_failed(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        reason: &str,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let current = self.generation.as_ref().is_some_and(|active| active.id == generation);
        if current && self.phase == Phase::Training {
            let message = format!("{} cannot go on in generation {generation}: {reason}", self.label(worker));
            out.push(note(Level::Warn, message.clone()));
            self.break_up(Failure::new(ErrorCode::CollectiveFailed, message), now, out);
        }
    }

    /// What a worker says about itself may hold for the others too: a failure that would meet them as well ends the run.
    pub(super) fn leaving(&mut self, worker: WorkerId, failure: Option<Failure>, now: u64, out: &mut Vec<Effect>) {
        let label = self.label(worker);
        let failure = match failure {
            None => Failure::new(ErrorCode::WorkerLost, format!("{label} left the run")),
            Some(failure) => Failure::new(failure.code, format!("{label} left the run: {}", failure.message)),
        };
        let engaged = self.members.get(&worker).is_some_and(Member::engaged);
        if engaged && failure.code.exit_code() == exit::FAILED {
            self.members.remove(worker);
            out.push(Effect::Dismiss { worker, failure: failure.clone() });
            self.give_up(failure, out);
            return;
        }
        self.lose(worker, failure, now, out);
    }

    pub(super) fn disconnected(&mut self, worker: WorkerId, now: u64, out: &mut Vec<Effect>) {
        let message = format!("the connection of {} broke", self.label(worker));
        self.lose(worker, Failure::new(ErrorCode::WorkerLost, message), now, out);
    }

    /// Removes a worker. The others go on without it.
    pub(super) fn lose(&mut self, worker: WorkerId, failure: Failure, now: u64, out: &mut Vec<Effect>) {
        // It did not leave as it was asked to.
        self.pardon(worker);
        if self.members.remove(worker).is_none() {
            return;
        }
        out.push(Effect::Dismiss { worker, failure: failure.clone() });
        if self.is_over() {
            return;
        }
        out.push(note(Level::Warn, failure.message.clone()));
        let ranked = self.generation.as_ref().is_some_and(|g| g.rank_of(worker).is_some());
        match self.phase {
            Phase::Gathering => self.gather(now, out),
            Phase::Training if ranked => self.break_up(failure, now, out),
            Phase::Evaluating if ranked => {
                out.push(Effect::Requeue { worker });
                self.await_evaluators(now, out);
            }
            Phase::Training | Phase::Evaluating | Phase::Over(_) => {}
        }
    }

    /// The generation is lost, and its ranks are called back: the next one forms from what they hold.
    pub(super) fn break_up(&mut self, failure: Failure, now: u64, out: &mut Vec<Effect>) {
        self.fruitless += 1;
        if self.fruitless >= MOST_FRUITLESS {
            let message = format!(
                "{} generations in succession failed before their first step: {}",
                self.fruitless, failure.message
            );
            self.give_up(Failure::new(failure.code, message), out);
            return;
        }
        self.abort_generation(&failure.message, out);
        // In another world another one may be the slowest.
        self.members.keys().copied().collect::<Vec<_>>().into_iter().for_each(|worker| self.pardon(worker));
        (self.generation, self.phase) = (None, Phase::Gathering);
        // Time to come back.
        self.members.change_all(|member| member.moved_at = now);
        self.gather(now, out);
    }

    /// When nobody is left to evaluate, others can: all that is needed is in the last checkpoint.
    pub(super) fn await_evaluators(&mut self, now: u64, out: &mut Vec<Effect>) {
        let ranked = |g: &ActiveGeneration| g.ranks.iter().any(|w| self.members.contains_key(w));
        if self.phase == Phase::Evaluating && !self.generation.as_ref().is_some_and(ranked) {
            (self.generation, self.phase) = (None, Phase::Gathering);
            self.gather(now, out);
        }
    }

    /// Ends the run in the midst of a generation.
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
            let goodbye =
                Goodbye { reason: outcome.reason.clone(), exit_code: outcome.exit_code.into(), ..Goodbye::default() };
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
