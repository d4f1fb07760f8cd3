//! Who holds the others up: in a synchronous step all wait for the slowest.
//!
//! A rank's pace is the time that it took for its own micro-batches, waiting for nobody, by the tokens in them. In each step it is held
//! against the median of the others'. Who takes more than `factor` times that in three quarters of the last `steps` steps, is slow: one
//! hiccup, of its own or of the others, makes nobody slow and acquits nobody. Steps without micro-batches for a rank, or for all others, say
//! nothing about it, and a rank that is alone is not slow. With every generation the judgement begins anew.

use super::{Effect, Level, Phase, State, WorkerId, admission::note, state::ActiveGeneration};
use ballast_proto::v1::StepReport;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
};

/// When a worker is slow, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowPolicy {
    /// Times the median seconds a token of the others; above 1.
    pub factor: f64,
    /// Steps that are looked at.
    pub steps: usize,
    /// Whether a slow worker is asked to leave; otherwise it is only told of.
    pub drain: bool,
}

/// A worker that was found slow.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowWorker {
    /// Who.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// The newest step that it was judged by.
    pub step: u64,
    /// Its seconds a token in times of the others' median: the median over the steps.
    pub ratio: f64,
    /// Steps in which it was behind by more than the factor.
    pub behind: usize,
    /// Steps that it was judged by.
    pub of: usize,
    /// Whether it was asked to leave.
    pub drained: bool,
}

impl fmt::Display for SlowWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, name, ratio, behind, of, .. } = self;
        write!(
            f,
            "worker {worker} ({name}) is slow: it takes {ratio:.1} times the seconds a token that the others take, in {behind} of \
             {of} steps"
        )
    }
}

/// What is known of the paces of a generation's ranks.
#[derive(Clone, Debug, Default)]
pub(super) struct Paces {
    /// Of the newest steps, oldest first: a rank's pace in times of the others' median.
    ratios: BTreeMap<WorkerId, VecDeque<f64>>,
    /// Those that were found slow.
    found: BTreeSet<WorkerId>,
}

/// How far behind a worker is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Behind {
    worker: WorkerId,
    ratio: f64,
    steps: usize,
}

impl Paces {
    /// Takes note of a step that all ranks have reported, and forgets what is older than `steps` steps.
    fn observe(&mut self, mut paces: Vec<(f64, WorkerId)>, steps: usize) {
        paces.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        for (at, (pace, worker)) in paces.iter().enumerate() {
            let Some(median) = median_without(&paces, at) else { continue };
            let ratios = self.ratios.entry(*worker).or_default();
            ratios.push_back(pace / median);
            if ratios.len() > steps {
                ratios.pop_front();
            }
        }
    }

    /// The slowest that is slow and has not been found so before.
    fn slowest(&self, policy: &SlowPolicy) -> Option<Behind> {
        let judged =
            self.ratios.iter().filter(|(worker, ratios)| ratios.len() >= policy.steps && !self.found.contains(worker));
        let behind = judged.filter_map(|(worker, ratios)| {
            let steps = ratios.iter().filter(|ratio| **ratio > policy.factor).count();
            let mut sorted: Vec<f64> = ratios.iter().copied().collect();
            sorted.sort_unstable_by(f64::total_cmp);
            let ratio = sorted.get(sorted.len() / 2).copied()?;
            (4 * steps >= 3 * policy.steps).then_some(Behind { worker: *worker, ratio, steps })
        });
        behind.max_by(|a, b| a.ratio.total_cmp(&b.ratio))
    }

    pub(super) fn found_slow(&self, worker: WorkerId) -> bool {
        self.found.contains(&worker)
    }
}

/// Seconds a token; `None` for a rank that had nothing to do, or whose numbers say nothing.
fn pace(report: &StepReport) -> Option<f64> {
    let pace = report.own_seconds / report.rank_tokens as f64;
    (report.rank_tokens > 0 && pace.is_finite() && pace > 0.0).then_some(pace)
}

/// The median of sorted paces but for the one at this place.
fn median_without(paces: &[(f64, WorkerId)], left_out: usize) -> Option<f64> {
    let others = paces.len().checked_sub(1).filter(|others| *others > 0)?;
    let other = |at: usize| paces.get(if at < left_out { at } else { at + 1 }).map(|(pace, _)| *pace);
    Some((other((others - 1) / 2)? + other(others / 2)?) / 2.0)
}

impl ActiveGeneration {
    /// Takes note of the paces in a step, if all ranks have reported it.
    pub(super) fn observe_paces(&mut self, reports: &BTreeMap<WorkerId, StepReport>, steps: usize) {
        if self.ranks.iter().all(|worker| reports.contains_key(worker)) {
            let ranks = reports.iter().filter(|(worker, _)| self.rank_of(**worker).is_some());
            let paces: Vec<_> = ranks.filter_map(|(worker, report)| Some((pace(report)?, *worker))).collect();
            Arc::make_mut(&mut self.paces).observe(paces, steps);
        }
    }
}

impl State {
    /// Tells of a worker that is slow, and asks it to leave where it is to be drained and can be done without: one at a time, and only
    /// where enough others stay.
    pub(super) fn judge_paces(&mut self, now: u64, out: &mut Vec<Effect>) {
        let policy = self.settings.slow;
        let leaving = self.members.census().draining > 0;
        let Some(active) = self.generation.as_mut().filter(|active| active.closing.is_none() && !leaving) else {
            return;
        };
        if self.phase != Phase::Training || self.stop.is_some() {
            return;
        }
        let Some(behind) = active.paces.slowest(&policy) else { return };
        Arc::make_mut(&mut active.paces).found.insert(behind.worker);
        let others = active.ranks.len() - 1;
        let Some(member) = self.members.get(&behind.worker) else { return };
        let (name, identity) = (member.name.clone(), identity(&member.name, &member.ring_address));
        let drained = policy.drain && others >= self.settings.min_workers.max(1);
        let slow = SlowWorker {
            worker: behind.worker,
            name,
            step: self.committed,
            ratio: behind.ratio,
            behind: behind.steps,
            of: policy.steps,
            drained,
        };
        let reason = slow.to_string();
        if policy.drain && !drained {
            let least = self.settings.min_workers;
            out.push(note(Level::Warn, format!("{reason}; it stays, as cluster.min_workers is {least}")));
        }
        out.push(Effect::Slow(slow));
        if drained {
            self.expelled.insert(identity);
            self.members.change(behind.worker, |member| member.expelled = true);
            self.leave_soon(behind.worker, reason, now, out);
        }
    }

    /// Takes back what was decided about a worker that has not left yet.
    pub(super) fn pardon(&mut self, worker: WorkerId) {
        if let Some(member) = self.members.get(&worker).filter(|member| member.expelled) {
            self.expelled.remove(&identity(&member.name, &member.ring_address));
            self.members.change(worker, |member| (member.expelled, member.draining) = (false, None));
        }
    }

    /// Whether a worker of this name on this host was asked to leave because it is slow.
    pub(super) fn was_expelled(&self, name: &str, ring_address: &str) -> bool {
        self.expelled.contains(&identity(name, ring_address))
    }
}

/// What a worker that comes back is known by: its name and its host. The port may be another one, and so may the process id with
/// which names end that nobody has chosen.
fn identity(name: &str, ring_address: &str) -> (String, String) {
    let host = ring_address.rsplit_once(':').map_or(ring_address, |(host, _)| host);
    let chosen = name.rsplit_once(':').filter(|(_, id)| id.parse::<u32>().is_ok()).map_or(name, |(chosen, _)| chosen);
    (chosen.to_owned(), host.to_owned())
}
