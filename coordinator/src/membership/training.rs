//! Step reports, commits, checkpoints, and the way from training to evaluation.

use super::{
    Commit, Effect, Level, Phase, State, StepTotals, WorkerId, admission::note, ending::stopped, member::Standing,
    readiness::oldest,
};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{EvaluatePhase, Generation, StepReport, coordinator_message::Message},
};
use std::collections::BTreeMap;

impl State {
    pub(super) fn step_reported(
        &mut self,
        worker: WorkerId,
        report: StepReport,
        planned: Option<StepTotals>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        if self.is_over() {
            return;
        }
        let horizon = self.horizon();
        let Some(member) = self.members.get(&worker) else { return };
        let newest = Generation::new(self.settings.epoch, self.last_generation);
        let (generation, applied) = match member.standing {
            Standing::Engaged { generation, applied } => (generation, applied),
            _ => (newest, u64::MAX),
        };
        if report.generation.is_some_and(|g| g < generation) {
            // Sent before the worker heard of the newer generation; fenced.
            out.push(note(Level::Warn, format!("ignored a report of an older generation from worker {worker}")));
            return;
        }
        if report.generation != Some(generation) || applied == u64::MAX {
            self.misbehaved(worker, "reported a step of a generation that it has no rank in", now, out);
            return;
        }
        let expected = applied + 1;
        if report.step != expected || report.step > horizon {
            let what =
                format!("reported step {}, but its next step is {expected} (streamed up to {horizon})", report.step);
            self.misbehaved(worker, &what, now, out);
            return;
        }
        if report.state_sha256.len() != 32 || !planned.is_some_and(|plan| plan.agree(&report)) {
            let what = format!(
                "reported step {expected} with token counts or micro-batches that are not the plan's, or a malformed hash"
            );
            self.misbehaved(worker, &what, now, out);
            return;
        }
        if !report.not_finite.is_empty() && self.settings.max_skipped.is_none() {
            self.misbehaved(worker, &format!("skipped step {expected}, which no setting allows"), now, out);
            return;
        }
        if !report.loss.is_finite() || !report.grad_norm.is_finite() {
            let label = self.label(worker);
            let message = format!(
                "{label} reported loss {} and gradient norm {} at step {expected}",
                report.loss, report.grad_norm
            );
            self.fail(Failure::new(ErrorCode::NonFinite, message), out);
            return;
        }
        self.members.change(worker, |member| {
            member.standing = Standing::Engaged { generation, applied: report.step };
            member.moved_at = now;
        });
        self.reports.entry(report.step).or_default().insert(worker, report);
        self.record_agreed_steps(out);
    }

    /// Hands every step that all ranks have reported to the ledger, in order. When the generation is lost, what survivors have
    /// reported is recorded once all of them have come back.
    fn record_agreed_steps(&mut self, out: &mut Vec<Effect>) {
        loop {
            let step = self.recorded + 1;
            let (Some(active), Some(reports)) = (&self.generation, self.reports.get(&step)) else { return };
            // Each rank must have reported, which need not be looked at before so many reports are there.
            let all = reports.len() >= active.ranks.len() && active.ranks.iter().all(|rank| reports.contains_key(rank));
            if !all || !self.record(step, out) {
                return;
            }
        }
    }

    /// Hands the next step to the ledger, as those report it who were there; whether they agree, and the run goes on.
    pub(super) fn record(&mut self, step: u64, out: &mut Vec<Effect>) -> bool {
        let reports = self.reports.remove(&step).unwrap_or_default();
        match agreement(&reports) {
            Ok(report) => {
                // Who brings the next step may have been in the oldest of their generations.
                let report = oldest(&reports, self.recorded_generation).unwrap_or(report);
                out.push(Effect::Persist(commit(report, &reports)));
                self.recorded_generation = report.generation.unwrap_or(self.recorded_generation);
                self.recorded = step;
                let steps = self.settings.slow.steps;
                if let Some(active) = &mut self.generation {
                    active.observe_paces(&reports, steps);
                }
                let skipped = !report.not_finite.is_empty();
                self.bear_skipped(step, skipped, out)
            }
            Err(apart) => {
                let workers: Vec<String> = apart.iter().map(|worker| self.label(*worker)).collect();
                let message = format!(
                    "after step {step} the training state of {} differs from the other ranks': run it again with \
                     one worker less, or check the memory of that machine",
                    workers.join(" and ")
                );
                self.fail(Failure::new(ErrorCode::StateDiverged, message), out);
                false
            }
        }
    }

    pub(super) fn step_committed(&mut self, step: u64, now: u64, out: &mut Vec<Effect>) {
        if !self.rewinding && step == self.committed + 1 && step <= self.recorded {
            self.committed = step;
            self.fruitless = 0;
            self.step_ms = [Some(now.saturating_sub(self.committed_at)), self.step_ms[0]];
            self.committed_at = now;
            self.advance_horizon();
            self.conclude_training(out);
            self.judge_paces(now, out);
        }
    }

    pub(super) fn checkpoint_saved(&mut self, step: u64, now: u64, out: &mut Vec<Effect>) {
        self.saving.remove(&step);
        if step <= self.committed && self.checkpoint.is_none_or(|newest| newest < step) {
            self.checkpoint = Some(step);
            out.push(note(Level::Info, format!("checkpoint of step {step} is durable")));
            self.conclude_training(out);
            self.regroup(now, out);
            self.release_drained(now, out);
            self.gather(now, out);
        }
    }

    /// Ends training once its last step is durable and checkpointed.
    pub(super) fn conclude_training(&mut self, out: &mut Vec<Effect>) {
        let end = self.end_step();
        if self.phase != Phase::Training || self.committed < end || self.checkpoint.is_none_or(|step| step < end) {
            return;
        }
        if let Some((reason, _)) = &self.stop
            && (end < self.settings.total_steps || self.settings.evaluate)
        {
            let outcome = stopped(reason, end);
            self.finish(outcome, out);
            return;
        }
        if !self.settings.evaluate {
            self.complete(out);
            return;
        }
        let Some(active) = &self.generation else { return };
        self.phase = Phase::Evaluating;
        out.push(note(Level::Info, format!("training is done after step {end}; evaluating")));
        out.push(Effect::Evaluate);
        for worker in &active.ranks {
            let message = Message::Evaluate(EvaluatePhase { generation: Some(active.id) });
            out.push(Effect::Send { worker: *worker, message });
        }
    }

    pub(super) fn evaluation_finished(&mut self, out: &mut Vec<Effect>) {
        if self.phase == Phase::Evaluating {
            self.complete(out);
        }
    }
}

/// The report that all agree on, or those who stand apart: whoever is outside the largest group of equals (all of them when no
/// group is larger than every other).
fn agreement(reports: &BTreeMap<WorkerId, StepReport>) -> Result<&StepReport, Vec<WorkerId>> {
    let same = |a: &StepReport, b: &StepReport| {
        a.state_sha256 == b.state_sha256 && a.loss.to_bits() == b.loss.to_bits() && a.not_finite == b.not_finite
    };
    let mut groups: Vec<(&StepReport, Vec<WorkerId>)> = Vec::new();
    for (worker, report) in reports {
        match groups.iter_mut().find(|(first, _)| same(first, report)) {
            Some((_, members)) => members.push(*worker),
            None => groups.push((report, vec![*worker])),
        }
    }
    if let [(report, _)] = groups[..] {
        return Ok(report);
    }
    let largest = groups.iter().map(|(_, members)| members.len()).max().unwrap_or(0);
    let rivals = groups.iter().filter(|(_, members)| members.len() == largest).count() > 1;
    let mut apart: Vec<WorkerId> =
        groups.into_iter().map(|(_, members)| members).filter(|m| rivals || m.len() < largest).flatten().collect();
    apart.sort_unstable();
    Err(apart)
}

fn commit(report: &StepReport, reports: &BTreeMap<WorkerId, StepReport>) -> Commit {
    let longest = |seconds: fn(&StepReport) -> f64| reports.values().map(seconds).fold(0.0, f64::max);
    Commit {
        generation: report.generation.unwrap_or_default(),
        step: report.step,
        state_sha256: report.state_sha256.to_vec(),
        loss: report.loss,
        loss_tokens: report.loss_tokens,
        tokens: report.tokens,
        grad_norm: report.grad_norm,
        learning_rate: report.learning_rate,
        compute_seconds: longest(|r| r.compute_seconds),
        reduce_seconds: longest(|r| r.reduce_seconds),
        recomputed: report.recomputed,
        not_finite: report.not_finite.clone(),
    }
}
