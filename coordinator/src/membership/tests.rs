//! Every decision of the membership, and random histories that must keep its invariants.

mod communicator;
mod elastic;
mod histories;
mod many;
mod scenarios;
mod simulation;
mod skipping;
mod slowness;

use super::*;
use ballast_proto::v1::{
    Collective, CommunicatorId, Generation, GenerationFormed, Heartbeat, HeldState, JoinRequest, NumericsFingerprint,
    Ready, StepReport, Timeouts, coordinator_message::Message,
};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const MODEL: &str = "model";
pub(super) const PLAN: StepTotals = StepTotals { loss_tokens: 10, tokens: 20, micro_batches: 4 };

pub(super) fn settings(workers: usize) -> Settings {
    Settings {
        epoch: 1,
        last_generation: 0,
        recorded_generation: Generation::default(),
        version: "1".into(),
        workers,
        min_workers: 1,
        gather_ms: 50,
        model_sha256: MODEL.into(),
        numerics: None,
        head: 0,
        checkpoint: None,
        total_steps: 6,
        skipped: BTreeSet::new(),
        max_skipped: None,
        slow: SlowPolicy { factor: 3.0, steps: 4, drain: false },
        collective: Collective::Auto,
        prefetch_steps: 1,
        evaluate: false,
        timeouts: Timeouts {
            heartbeat_interval_ms: 10,
            lease_ms: 100,
            progress_ms: 300,
            collective_ms: 500,
            load_ms: 1000,
        },
    }
}

pub(super) fn join_request(name: &str) -> JoinRequest {
    JoinRequest { version: "1".into(), display_name: name.into(), ring_address: "127.0.0.1:9".into() }
}

pub(super) fn fingerprint() -> NumericsFingerprint {
    NumericsFingerprint {
        binary_sha256: "binary".into(),
        backend: "cpu".into(),
        arithmetic: "avx2".into(),
        weights_sha256: MODEL.into(),
    }
}

pub(super) fn communicator(generation: Generation) -> CommunicatorId {
    CommunicatorId { generation: Some(generation), id: vec![5; 128].into() }
}

pub(super) fn report(generation: Generation, step: u64, state: u8) -> StepReport {
    StepReport {
        generation: Some(generation),
        step,
        state_sha256: vec![state; 32].into(),
        loss: 1.0 / step as f64,
        loss_tokens: PLAN.loss_tokens,
        tokens: PLAN.tokens,
        rank_tokens: 5,
        grad_norm: 0.5,
        learning_rate: 1e-3,
        compute_seconds: 0.1,
        reduce_seconds: 0.2,
        recomputed: 0,
        not_finite: Vec::new(),
        own_seconds: 0.1,
    }
}

/// A membership under test: keeps the clock, checks every transition, and remembers the last effects.
pub(super) struct Run {
    pub(super) state: State,
    pub(super) now: u64,
    pub(super) trace: Trace,
    pub(super) last: Vec<Effect>,
    /// What its workers compute with.
    pub(super) fingerprint: NumericsFingerprint,
    /// State hashes of the steps that are recorded and not void.
    pub(super) ledger: BTreeMap<u64, Vec<u8>>,
}

impl Run {
    pub(super) fn new(settings: Settings) -> Self {
        let (trace, last) = (Trace::default(), Vec::new());
        let ledger = (1..=settings.head).map(|step| (step, vec![step as u8; 32])).collect();
        Self { state: State::new(settings), now: 0, trace, last, fingerprint: fingerprint(), ledger }
    }

    pub(super) fn feed(&mut self, event: Event) -> &[Effect] {
        let effects = step(&mut self.state, event.clone(), self.now);
        check(&self.state).unwrap_or_else(|broken| panic!("{broken}, after {event:?}"));
        self.trace.observe(&self.state, &effects).unwrap_or_else(|broken| panic!("{broken}, after {event:?}"));
        for effect in &effects {
            match effect {
                Effect::Persist(commit) => drop(self.ledger.insert(commit.step, commit.state_sha256.clone())),
                Effect::Rewind { to } => drop(self.ledger.split_off(&(to + 1))),
                _ => {}
            }
        }
        self.last = effects;
        &self.last
    }

    /// What the shell knows of a step.
    pub(super) fn known(&self, step: u64) -> KnownStep {
        KnownStep {
            state_sha256: self.ledger.get(&step).cloned(),
            planned: (1..=step).map(|step| (step, PLAN)).collect(),
        }
    }

    pub(super) fn join(&mut self, name: &str) -> WorkerId {
        let effects = self.feed(Event::Join(join_request(name)));
        effects.iter().find_map(|e| if let Effect::Admit { worker } = e { Some(*worker) } else { None }).unwrap()
    }

    pub(super) fn ready(&mut self, worker: WorkerId) {
        self.feed(Event::Connected { worker });
        self.feed(Event::Ready { worker, ready: ready(self.fingerprint.clone()), known: KnownStep::default() });
    }

    /// A worker comes from another coordinator with the state of a step, which it trained.
    pub(super) fn ready_with(&mut self, worker: WorkerId, held: HeldState) {
        self.feed(Event::Connected { worker });
        let known = self.known(held.step);
        let ready = Ready { held: Some(held), ..ready(self.fingerprint.clone()) };
        self.feed(Event::Ready { worker, ready, known });
    }

    /// A worker comes back from a generation with the state of a step.
    pub(super) fn back(&mut self, worker: WorkerId, left: Generation, step: u64) {
        let held = (step > 0).then(|| held(left, step, step as u8));
        let ready = Ready { held, left: Some(left), ..ready(self.fingerprint.clone()) };
        let known = self.known(step);
        self.feed(Event::Ready { worker, ready, known });
    }

    /// What the last transition told each rank of a new generation.
    pub(super) fn formed(&self) -> Vec<(WorkerId, GenerationFormed)> {
        let formed = |(worker, message)| match message {
            Message::GenerationFormed(formed) => Some((worker, formed)),
            _ => None,
        };
        self.sent().into_iter().filter_map(formed).collect()
    }

    /// `n` workers, all ready: a generation has formed.
    pub(super) fn training(settings: Settings) -> Self {
        Self::new(settings).trained()
    }

    /// As many workers as it takes join and get ready.
    pub(super) fn trained(mut self) -> Self {
        let ids: Vec<_> = (0..self.state.settings.workers).map(|n| self.join(&format!("w{n}"))).collect();
        ids.into_iter().for_each(|worker| self.ready(worker));
        assert_eq!(*self.state.phase(), Phase::Training);
        self
    }

    pub(super) fn generation(&self) -> Generation {
        self.state.generation().unwrap()
    }

    pub(super) fn report(&mut self, worker: WorkerId, step: u64, state: u8) {
        let report = report(self.generation(), step, state);
        self.feed(Event::StepReported { worker, report, planned: Some(PLAN) });
    }

    /// All ranks report a step, and it becomes durable.
    pub(super) fn commit(&mut self, number: u64) {
        let workers: Vec<_> = self.state.members().filter(|m| m.rank.is_some()).map(|m| m.worker).collect();
        workers.into_iter().for_each(|worker| self.report(worker, number, number as u8));
        assert!(self.recorded(number), "{:?}", self.last);
        self.feed(Event::Committed { step: number });
    }

    pub(super) fn recorded(&self, number: u64) -> bool {
        self.last.iter().any(|e| matches!(e, Effect::Persist(commit) if commit.step == number))
    }

    pub(super) fn outcome(&self) -> &Outcome {
        match self.state.phase() {
            Phase::Over(outcome) => outcome,
            phase => panic!("the run is not over: {phase:?}"),
        }
    }

    /// Messages of the last transition.
    pub(super) fn sent(&self) -> Vec<(WorkerId, Message)> {
        let message = |e: &Effect| match e {
            Effect::Send { worker, message } => Some((*worker, message.clone())),
            _ => None,
        };
        self.last.iter().filter_map(message).collect()
    }
}

pub(super) fn ready(fingerprint: NumericsFingerprint) -> Ready {
    Ready { fingerprint: Some(fingerprint), held: None, left: None }
}

/// A state after a step that was trained in a generation.
pub(super) fn held(generation: Generation, step: u64, state: u8) -> HeldState {
    HeldState { step, state_sha256: vec![state; 32].into(), reports: vec![report(generation, step, state)] }
}

pub(super) fn heartbeat(progress: u64, phase: ballast_proto::v1::Phase) -> Heartbeat {
    Heartbeat { progress, phase: phase.into() }
}
