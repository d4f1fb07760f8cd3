//! Workers that come: from loading, from another coordinator, or back from a generation; and what state they bring.

use super::{
    Effect, KnownStep, Level, Phase, State, WorkerId,
    admission::note,
    member::{Held, Standing},
};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{self, Generation, HeldState, NumericsFingerprint, Ready, StepReport},
};
use std::collections::BTreeMap;

impl State {
    pub(super) fn ready(&mut self, worker: WorkerId, ready: Ready, known: &KnownStep, now: u64, out: &mut Vec<Effect>) {
        let Some(member) = self.members.get(&worker) else { return };
        let expected = match &member.standing {
            Standing::Loading => ready.left.is_none(),
            Standing::Engaged { generation, .. } => ready.left == Some(*generation),
            Standing::Admitted | Standing::Idle(_) => false,
        };
        if !expected {
            self.misbehaved(worker, "reported ready out of turn", now, out);
            return;
        }
        let Some(fingerprint) = ready.fingerprint else {
            self.misbehaved(worker, "reported ready without a numerics fingerprint", now, out);
            return;
        };
        if let Err(failure) = self.compatible(worker, &fingerprint) {
            self.lose(worker, failure, now, out);
            return;
        }
        if self.numerics.is_none() {
            out.push(note(
                Level::Info,
                format!("the run is computed with {} ({})", fingerprint.arithmetic, fingerprint.backend),
            ));
            self.numerics = Some(fingerprint.clone());
            out.push(Effect::RecordNumerics(fingerprint));
        }
        let held = ready.held.and_then(|held| self.accept(worker, &held, known, out));
        let label = self.label(worker);
        self.members.change(worker, |member| {
            member.standing = Standing::Idle(held);
            member.moved_at = now;
            member.phase = v1::Phase::Waiting;
        });
        if ready.left.is_none() {
            let ready = self.members.census().ready();
            let state = held.map_or_else(String::new, |held| format!(", with the state of step {}", held.step));
            out.push(note(Level::Info, format!("{label} is ready{state} ({ready} of {})", self.settings.workers)));
        }
        match self.phase {
            Phase::Gathering => self.gather(now, out),
            Phase::Training => self.regroup(now, out),
            Phase::Evaluating => self.release_drained(now, out),
            Phase::Over(_) => {}
        }
    }

    /// Whether this worker would compute the same bits as the run so far.
    fn compatible(&self, worker: WorkerId, fingerprint: &NumericsFingerprint) -> Result<(), Failure> {
        let label = self.label(worker);
        if fingerprint.weights_sha256 != self.settings.model_sha256 {
            return Err(Failure::new(
                ErrorCode::ModelMismatch,
                format!(
                    "{label} loaded a base model with sha256 {}, the run's is {}: give it the same files",
                    fingerprint.weights_sha256, self.settings.model_sha256
                ),
            ));
        }
        match self.numerics.as_ref().and_then(|run| difference(run, fingerprint)) {
            None => Ok(()),
            Some(difference) => Err(Failure::new(
                ErrorCode::NumericsMismatch,
                format!("{label} would compute different bits: {difference}"),
            )),
        }
    }

    /// The state that a worker holds, if it is the run's: the one that the ledger records for its step, or one that the ledger
    /// can still be told of, because the worker (or another rank) reports what every step up to it came to.
    fn accept(&mut self, worker: WorkerId, held: &HeldState, known: &KnownStep, out: &mut Vec<Effect>) -> Option<Held> {
        let HeldState { step, state_sha256, reports } = held;
        let accepted = if *step <= self.recorded {
            known.state_sha256.as_deref() == Some(&**state_sha256)
        } else {
            let newest = reports.last().is_some_and(|r| r.step == *step && r.state_sha256 == *state_sha256);
            reports.iter().filter(|_| newest).for_each(|report| self.learn(worker, report, known));
            let newest = self.reports.get(step);
            self.recordable() >= *step
                && newest.is_some_and(|reports| reports.values().any(|report| report.state_sha256 == *state_sha256))
        };
        if !accepted {
            let label = self.label(worker);
            out.push(note(Level::Warn, format!("{label} holds a state of step {step} that this run does not know")));
        }
        accepted.then_some(Held { step: *step })
    }

    /// The newest step that the ledger can be told of: ranks have reported it and every step before it, in generations that do not
    /// fall.
    pub(super) fn recordable(&self) -> u64 {
        let (mut step, mut generation) = (self.recorded, self.recorded_generation);
        while let Some(next) = self.reports.get(&(step + 1)).and_then(|reports| oldest(reports, generation)) {
            (step, generation) = (step + 1, next.generation.unwrap_or_default());
        }
        step
    }

    /// Takes note of a step that leads to the state that a worker holds, if nobody was told of it before: the coordinator that it
    /// was reported to is gone.
    fn learn(&mut self, worker: WorkerId, report: &StepReport, known: &KnownStep) {
        let step = report.step;
        let reported = |step: u64| self.reports.get(&step).is_some_and(|reports| !reports.is_empty());
        let of_its_time =
            |generation: Generation| generation.epoch <= self.settings.epoch && generation >= self.recorded_generation;
        let planned = known.planned.get(&step).is_some_and(|plan| plan.agree(report));
        let plausible = step > self.recorded
            && (self.recorded + 1..step).all(reported)
            && report.state_sha256.len() == 32
            && planned
            && report.loss.is_finite()
            && report.grad_norm.is_finite()
            && (report.not_finite.is_empty() || self.settings.max_skipped.is_some())
            && report.generation.is_some_and(of_its_time);
        if plausible {
            self.reports.entry(step).or_default().entry(worker).or_insert_with(|| report.clone());
        }
    }
}

/// Of reports of one step, one of the oldest generation that is not older than this.
pub(super) fn oldest(reports: &BTreeMap<WorkerId, StepReport>, generation: Generation) -> Option<&StepReport> {
    reports.values().filter(|report| report.generation >= Some(generation)).min_by_key(|report| report.generation)
}

/// The first difference between the run's arithmetic and a worker's, in words.
fn difference(run: &NumericsFingerprint, worker: &NumericsFingerprint) -> Option<String> {
    let fields = [
        ("binary", &run.binary_sha256, &worker.binary_sha256),
        ("backend", &run.backend, &worker.backend),
        ("arithmetic", &run.arithmetic, &worker.arithmetic),
        ("base weights", &run.weights_sha256, &worker.weights_sha256),
    ];
    fields
        .into_iter()
        .find(|(_, run, worker)| run != worker)
        .map(|(name, run, worker)| format!("its {name} is {worker:?}, the run's is {run:?}"))
}
