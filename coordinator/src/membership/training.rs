//! Step reports, commits, checkpoints, and the way from training to evaluation.

use super::{Commit, Effect, Level, Phase, State, StepTotals, WorkerId, admission::note, ending::stopped};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{EvaluatePhase, StepReport, coordinator_message::Message},
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
        if self.phase != Phase::Training {
            return;
        }
        let horizon = self.horizon();
        let Some(active) = &mut self.generation else { return };
        if report.generation.is_some_and(|g| g < active.id) {
            // Sent before the worker heard of the newer generation; fenced.
            out.push(note(Level::Warn, format!("ignored a report of an older generation from worker {worker}")));
            return;
        }
        let Some(rank) = active.rank_of(worker).filter(|_| report.generation == Some(active.id)) else {
            self.misbehaved(worker, "reported a step of a generation that does not exist", out);
            return;
        };
        let expected = active.applied.get(rank).map_or(0, |step| step + 1);
        if report.step != expected || report.step > horizon {
            let what =
                format!("reported step {}, but its next step is {expected} (streamed up to {horizon})", report.step);
            self.misbehaved(worker, &what, out);
            return;
        }
        if report.state_sha256.len() != 32 || !planned.is_some_and(|plan| plan.agree(&report)) {
            let what =
                format!("reported step {} with token counts that are not the plan's, or a malformed hash", expected);
            self.misbehaved(worker, &what, out);
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
        if let Some(applied) = active.applied.get_mut(rank) {
            *applied = report.step;
        }
        active.reports.entry(report.step).or_default().insert(rank, report);
        if let Some(member) = self.members.get_mut(&worker) {
            member.moved_at = now;
        }
        self.record_agreed_steps(out);
    }

    /// Hands every step that all ranks have reported to the ledger, in order.
    fn record_agreed_steps(&mut self, out: &mut Vec<Effect>) {
        loop {
            let step = self.recorded + 1;
            let Some(active) = &mut self.generation else { return };
            if active.reports.get(&step).is_none_or(|reports| reports.len() < active.ranks.len()) {
                return;
            }
            let Some(reports) = active.reports.remove(&step) else { return };
            match agreement(&reports) {
                Ok(report) => {
                    out.push(Effect::Persist(commit(active.id, report, &reports)));
                    self.recorded = step;
                }
                Err(ranks) => {
                    let workers: Vec<String> = ranks
                        .iter()
                        .filter_map(|r| active.ranks.get(*r))
                        .copied()
                        .collect::<Vec<_>>()
                        .iter()
                        .map(|w| self.label(*w))
                        .collect();
                    let message = format!(
                        "after step {step} the training state of {} differs from the other ranks': run it again with \
                         one worker less, or check the memory of that machine",
                        workers.join(" and ")
                    );
                    self.fail(Failure::new(ErrorCode::StateDiverged, message), out);
                    return;
                }
            }
        }
    }

    pub(super) fn step_committed(&mut self, step: u64, now: u64, out: &mut Vec<Effect>) {
        if step == self.committed + 1 && step <= self.recorded {
            self.committed = step;
            self.step_ms = [Some(now.saturating_sub(self.committed_at)), self.step_ms[0]];
            self.committed_at = now;
            self.advance_horizon();
            self.conclude_training(out);
        }
    }

    pub(super) fn checkpoint_saved(&mut self, step: u64, out: &mut Vec<Effect>) {
        if step <= self.committed && self.checkpoint.is_none_or(|newest| newest < step) {
            self.checkpoint = Some(step);
            out.push(note(Level::Info, format!("checkpoint of step {step} is durable")));
            self.conclude_training(out);
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

/// The report that all ranks agree on, or the ranks that stand apart: those outside the largest group of equals (all of
/// them when no group is larger than every other).
fn agreement(reports: &BTreeMap<usize, StepReport>) -> Result<&StepReport, Vec<usize>> {
    let same =
        |a: &StepReport, b: &StepReport| a.state_sha256 == b.state_sha256 && a.loss.to_bits() == b.loss.to_bits();
    let group = |report: &StepReport| reports.values().filter(|other| same(report, other)).count();
    let largest = reports.values().map(&group).max().unwrap_or(0);
    let first = reports.values().find(|r| group(r) == largest);
    match first {
        Some(report) if largest == reports.len() => Ok(report),
        Some(report) => {
            let apart: Vec<usize> = reports.iter().filter(|(_, r)| !same(report, r)).map(|(rank, _)| *rank).collect();
            let rivals = reports.values().any(|r| !same(report, r) && group(r) == largest);
            Err(if rivals { reports.keys().copied().collect() } else { apart })
        }
        None => Err(Vec::new()),
    }
}

fn commit(
    generation: ballast_proto::v1::Generation,
    report: &StepReport,
    reports: &BTreeMap<usize, StepReport>,
) -> Commit {
    let longest = |seconds: fn(&StepReport) -> f64| reports.values().map(seconds).fold(0.0, f64::max);
    Commit {
        generation,
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
    }
}
