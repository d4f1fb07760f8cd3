//! From idle workers to a generation: whether there are enough, which state they start from, and who brings it.

use super::{
    Effect, Level, Phase, State, WorkerId,
    admission::note,
    ending::stopped,
    member::{Member, Standing},
    state::{ActiveGeneration, Closing},
};
use ballast_proto::v1::{Generation, GenerationFormed, Goodbye, StateSource, coordinator_message::Message};
use ballast_proto::{ErrorCode, exit};
use std::sync::Arc;

/// Workers that are named in a line about those who are waited for.
const MOST_NAMED: usize = 4;

/// The state that a generation starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    /// One in the memory of a worker, after this step.
    Live(u64),
    /// The newest checkpoint, of this step.
    Checkpoint(u64),
    /// That of the seed.
    Seed,
}

impl Base {
    fn step(self) -> u64 {
        match self {
            Self::Live(step) | Self::Checkpoint(step) => step,
            Self::Seed => 0,
        }
    }
}

impl State {
    /// Forms a generation if everything is there for it, and says what is missing when that changes.
    pub(super) fn gather(&mut self, now: u64, out: &mut Vec<Effect>) {
        self.release_drained(now, out);
        if self.phase != Phase::Gathering || self.rewinding {
            return;
        }
        if let Some((reason, _)) = self.stop.clone().filter(|_| self.members.is_empty()) {
            // Whoever stops a run starts no more workers for it.
            self.finish(stopped(&reason, self.committed), out);
            return;
        }
        let missing = self.missing(now);
        if missing != self.waiting {
            if !missing.is_empty() {
                out.push(note(Level::Info, format!("waiting: {missing}")));
            }
            self.waiting.clone_from(&missing);
        }
        if !missing.is_empty() {
            return;
        }
        let base = self.base();
        if self.recorded < base.step() && !self.record_survivors(base.step(), out) {
            return;
        }
        if base.step() < self.recorded {
            self.rewind(base.step(), out);
            return;
        }
        self.form_generation(base, now, out);
    }

    /// What a generation has to wait for, in words; empty when it can form.
    fn missing(&mut self, now: u64) -> String {
        let census = self.members.census();
        if census.engaged > 0 {
            // One of them may hold the newest state.
            self.enough_since = None;
            return format!("{} to come back from the last generation", self.returning(census.engaged));
        }
        if census.draining == self.members.len() && !self.candidates().is_empty() {
            // They keep their places until a checkpoint has what they know, and nobody else can come meanwhile.
            return String::new();
        }
        let (idle, may_begin) = if census.draining == 0 {
            (census.idle, census.idle_veterans > 0)
        } else {
            let candidates = self.candidates();
            (candidates.len(), candidates.iter().any(|worker| self.members[worker].veteran))
        };
        let (loading, least, wanted) = (census.loading, self.settings.min_workers, self.settings.workers);
        if idle < least {
            self.enough_since = None;
            return format!("{idle} of at least {least} workers are ready, {loading} are loading");
        }
        let since = *self.enough_since.get_or_insert(now);
        // Survivors do not wait: whoever comes later enters at the next step boundary.
        if idle < wanted && !may_begin && now.saturating_sub(since) < self.settings.gather_ms {
            return format!("{idle} of {wanted} workers are ready; the rest has {} s", self.settings.gather_ms / 1000);
        }
        let base = self.base().step();
        if let Some(step) = self.saving.last().filter(|step| base < self.recorded && base < **step) {
            // What is on its way to the store need not be done again.
            return format!("the checkpoint of step {step} to be saved");
        }
        String::new()
    }

    /// Workers that can have a rank, in order of admission. One that wants to leave takes part once more where nobody else holds
    /// the state that training goes on from.
    fn candidates(&self) -> Vec<WorkerId> {
        let idle = || self.members.iter().filter(|(_, m)| m.idle());
        let newest = idle().map(|(_, m)| m.step()).max().unwrap_or(0);
        let bearer = idle().find(|(_, m)| m.step() == newest && m.draining.is_some()).map(|(worker, _)| *worker);
        let bearer = bearer.filter(|worker| !self.kept_without(*worker));
        idle().filter(|(w, m)| m.draining.is_none() || Some(**w) == bearer).map(|(worker, _)| *worker).collect()
    }

    /// Those who are to come back, by name where they are few.
    fn returning(&self, count: usize) -> String {
        if count > MOST_NAMED {
            // The same words until they are few: each would else have all others told that one less is missing.
            return format!("more than {MOST_NAMED} workers");
        }
        let labels = self.members.iter().filter(|(_, m)| m.engaged()).map(|(worker, _)| self.label(*worker));
        labels.collect::<Vec<_>>().join(", ")
    }

    /// Whether nothing is lost with what a worker holds: others hold it too, or a checkpoint does, or it is not the newest.
    fn kept_without(&self, worker: WorkerId) -> bool {
        let step = self.members.get(&worker).map_or(0, Member::step);
        let known = |(other, m): (&WorkerId, &Member)| *other != worker && m.draining.is_none() && m.step() >= step;
        step == 0 || step < self.recorded || self.checkpoint >= Some(step) || self.members.iter().any(known)
    }

    /// The newest state that can be had. A worker's is taken before a checkpoint of the same step: it is nearer.
    fn base(&self) -> Base {
        let live = self.candidates().iter().map(|worker| self.members[worker].step()).max().unwrap_or(0);
        match self.checkpoint {
            Some(step) if step > live => Base::Checkpoint(step),
            _ if live > 0 => Base::Live(live),
            _ => Base::Seed,
        }
    }

    /// Records the steps that survivors have applied but not all ranks reported; whether that could be done.
    fn record_survivors(&mut self, newest: u64, out: &mut Vec<Effect>) -> bool {
        for step in self.recorded + 1..=newest {
            if !self.record(step, out) {
                return false;
            }
        }
        true
    }

    /// Nobody holds the state of the newest step any more: goes back to one that can be had. The steps after it are done again.
    fn rewind(&mut self, to: u64, out: &mut Vec<Effect>) {
        let words = format!("no worker holds the state after step {}: going back to step {to}", self.recorded);
        out.push(note(Level::Warn, words));
        out.push(Effect::Rewind { to });
        (self.recorded, self.committed, self.horizon) = (to, to, to);
        self.reports.clear();
        self.skipped.split_off(&(to + 1));
        self.rewinding = true;
    }

    pub(super) fn rewound(&mut self, now: u64, out: &mut Vec<Effect>) {
        self.rewinding = false;
        self.gather(now, out);
    }

    /// Numbers the idle workers, in order of admission, and tells them to begin.
    fn form_generation(&mut self, base: Base, now: u64, out: &mut Vec<Effect>) {
        self.last_generation += 1;
        let id = Generation::new(self.settings.epoch, self.last_generation);
        let (transport, start_step) = (self.transport(), base.step());
        let ranks = self.candidates();
        let source = |worker: &WorkerId| match base {
            Base::Live(step) if self.members[worker].step() == step => StateSource::Memory,
            Base::Live(_) => StateSource::Peer,
            Base::Checkpoint(_) => StateSource::Checkpoint,
            Base::Seed => StateSource::Seed,
        };
        let sources: Vec<StateSource> = ranks.iter().map(source).collect();
        // Also where training is done but for the checkpoint of its last step.
        let wanted = sources.contains(&StateSource::Peer)
            || (start_step == self.end_step() && self.checkpoint < Some(start_step));
        let hand_over = sources.iter().position(|source| *source == StateSource::Memory).filter(|_| wanted);
        let world_size = u32::try_from(ranks.len()).unwrap_or(u32::MAX);
        let address = |rank: usize| self.members[&ranks[rank % ranks.len()]].ring_address.clone();
        for (rank, (worker, source)) in ranks.iter().zip(sources).enumerate() {
            let formed = GenerationFormed {
                generation: Some(id),
                rank: u32::try_from(rank).unwrap_or(u32::MAX),
                world_size,
                start_step,
                state_source: source.into(),
                transport: transport.into(),
                hand_over: hand_over == Some(rank),
                next_address: address(rank + 1),
                previous_address: address(rank + ranks.len() - 1),
                first_address: address(0),
            };
            out.push(Effect::Send { worker: *worker, message: Message::GenerationFormed(formed) });
        }
        for worker in &ranks {
            self.members.change(*worker, |member| {
                member.standing = Standing::Engaged { generation: id, applied: start_step };
                member.veteran = true;
                member.moved_at = now;
            });
        }
        let words = format!("generation {id} formed: {} workers, after step {start_step}", ranks.len());
        out.push(note(Level::Info, words));
        self.generation = Some(ActiveGeneration {
            id,
            ranks,
            start_step,
            hand_over,
            transport,
            communicator_made: false,
            closing: None,
            paces: Arc::default(),
        });
        self.reports.clear();
        self.phase = Phase::Training;
        self.committed_at = now;
        self.enough_since = None;
        self.horizon = start_step;
        self.advance_horizon();
        self.conclude_training(out);
        self.regroup(now, out);
    }

    /// Ends the generation at a step boundary when another one is wanted: for a worker that is ready to enter, or without one
    /// that wants to leave. Once all ranks have come back, the next one forms.
    pub(super) fn regroup(&mut self, now: u64, out: &mut Vec<Effect>) {
        if self.phase != Phase::Training {
            return;
        }
        let Some(active) = &self.generation else { return };
        if let Some(closing) = active.closing {
            // All ranks are members, or else it would not train.
            let back = self.members.census().engaged == 0;
            // The checkpoint of those who leave is on its way.
            let kept = !closing.checkpoint || self.checkpoint >= Some(closing.last_step);
            if back && kept && closing.last_step < self.end_step() {
                (self.generation, self.phase) = (None, Phase::Gathering);
                self.gather(now, out);
            }
            return;
        }
        let draining = |worker: &WorkerId| self.members.get(worker).and_then(|m| m.draining.clone());
        let entering =
            self.members.iter().find(|(w, m)| m.idle() && m.draining.is_none() && active.rank_of(**w).is_none());
        let leaving = active.ranks.iter().find_map(draining);
        let reason = match (entering, leaving) {
            (Some((worker, _)), _) => format!("{} enters", self.label(*worker)),
            (None, Some(reason)) => reason,
            (None, None) => return,
        };
        // What is streamed is trained. The state must be kept where nobody stays who knows it, in a step that can still say so.
        let checkpoint = entering.is_none() && active.ranks.iter().all(|w| draining(w).is_some());
        let last_step = (self.horizon + u64::from(checkpoint)).min(self.end_step());
        if last_step == self.end_step() {
            return;
        }
        out.push(note(Level::Info, format!("generation {} ends after step {last_step}: {reason}", active.id)));
        if let Some(active) = &mut self.generation {
            active.closing = Some(Closing { last_step, checkpoint });
        }
        self.advance_horizon();
    }

    /// Those who wait for this checkpoint to leave take part once more, and it is tried again.
    pub(super) fn checkpoint_failed(&mut self, step: u64, now: u64, out: &mut Vec<Effect>) {
        self.saving.remove(&step);
        self.gather(now, out);
        let closing = self.generation.as_mut().and_then(|active| active.closing.as_mut());
        if let Some(closing) = closing.filter(|closing| closing.last_step == step) {
            closing.checkpoint = false;
            self.regroup(now, out);
        }
    }

    pub(super) fn draining(&mut self, worker: WorkerId, reason: String, now: u64, out: &mut Vec<Effect>) {
        // Whoever is on its way out leaves of its own accord now.
        self.pardon(worker);
        if self.members.get(&worker).is_none_or(|member| member.draining.is_some()) {
            return;
        }
        out.push(note(Level::Info, format!("{} wants to leave: {reason}", self.label(worker))));
        self.leave_soon(worker, reason, now, out);
    }

    /// Lets a worker go at the next step boundary at which it can be spared.
    pub(super) fn leave_soon(&mut self, worker: WorkerId, reason: String, now: u64, out: &mut Vec<Effect>) {
        self.members.change(worker, |member| member.draining = Some(reason));
        match self.phase {
            Phase::Gathering => self.gather(now, out),
            Phase::Training => {
                self.release_drained(now, out);
                self.regroup(now, out);
            }
            Phase::Evaluating => self.release_drained(now, out),
            Phase::Over(_) => {}
        }
    }

    /// Says goodbye to whoever wants to leave and can be spared: nothing that it knows is lost with it.
    pub(super) fn release_drained(&mut self, now: u64, out: &mut Vec<Effect>) {
        let spared: Vec<WorkerId> = match self.members.census().draining {
            0 => Vec::new(),
            _ => {
                let leaving = self.members.iter().filter(|(w, m)| m.draining.is_some() && self.can_be_spared(**w));
                leaving.map(|(worker, _)| *worker).collect()
            }
        };
        for worker in spared {
            let Some(member) = self.members.get(&worker) else { continue };
            let reason = member.draining.clone().unwrap_or_default();
            out.push(note(Level::Info, format!("{} leaves: {reason}", self.label(worker))));
            let error_code = if member.expelled { ErrorCode::TooSlow.to_string() } else { String::new() };
            let goodbye = Goodbye { reason, exit_code: exit::RETRY.into(), error_code };
            out.push(Effect::Send { worker, message: Message::Goodbye(goodbye) });
            self.members.remove(worker);
            if self.phase == Phase::Evaluating {
                out.push(Effect::Requeue { worker });
            }
        }
        self.await_evaluators(now, out);
    }

    fn can_be_spared(&self, worker: WorkerId) -> bool {
        let Some(member) = self.members.get(&worker) else { return false };
        let ranked = self.generation.as_ref().is_some_and(|active| active.rank_of(worker).is_some());
        match member.standing {
            Standing::Admitted | Standing::Loading => true,
            _ if self.phase == Phase::Evaluating => true,
            Standing::Engaged { .. } => false,
            // It has come back before the others have, and is still a rank of theirs.
            Standing::Idle(_) if ranked => false,
            Standing::Idle(_) => self.kept_without(worker),
        }
    }
}
