//! The membership with workers that obey the protocol and compute nothing, in a world where processes die, stop and come back, messages
//! take their time, the disk is slow, and the coordinator is killed between any two events. Whatever happens, the invariants hold;
//! and once it stops happening, the run completes with every step recorded once.
//!
//! One seed, one history: there is no clock, no thread and no hash map in it.

use super::*;
use ballast_proto::ErrorCode;
use ballast_proto::v1::{NonFinite, StateSource};
use std::collections::VecDeque;

/// Steps of a run.
const STEPS: u64 = 24;
/// Places for workers.
const WORKERS: usize = 3;
/// Steps whose gradient is not finite, and the micro-batch.
const SKIPPED: [(u64, u32); 3] = [(6, 1), (7, 0), (15, 3)];
/// Events of a history while things go wrong.
const STORM: u64 = 2000;
/// Events by which a run must be complete once nothing goes wrong any more.
const CALM: u64 = 40_000;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// A rank whose micro-batches take that much longer.
const SLOWER: f64 = 5.0;

/// What a worker says.
#[derive(Clone, Debug)]
enum Said {
    Connected,
    Ready(Option<HeldState>, Option<Generation>),
    Report(StepReport),
    Draining,
    Broken(Generation),
    Uploaded { step: u64 },
}

/// A generation as a worker is in it.
#[derive(Clone, Debug)]
struct Place {
    formed: GenerationFormed,
    /// Whether it has the state that it starts from.
    prepared: bool,
    /// Whether it was told to give up.
    aborted: bool,
    /// Step that it has contributed to.
    contributed: u64,
}

/// A process.
#[derive(Clone, Debug)]
struct Worker {
    name: String,
    /// Whether it takes longer than others.
    slow: bool,
    /// Its identity in the current session; `None` while it has none.
    session: Option<WorkerId>,
    held: Option<HeldState>,
    place: Option<Place>,
    says: VecDeque<Said>,
    hears: VecDeque<Message>,
    /// Does nothing, as after SIGSTOP.
    stopped: bool,
    draining: bool,
}

struct World {
    dice: Dice,
    run: Run,
    workers: Vec<Worker>,
    /// Sessions that have broken, and what is left of their words.
    broken: Vec<(WorkerId, VecDeque<Said>)>,
    /// On their way to the disk, in order.
    writing: VecDeque<Effect>,
    /// What the disk has: step and generation.
    ledger: Vec<(u64, Generation)>,
    checkpoint: Option<u64>,
    epoch: u64,
    /// States on their way to the store, and whether they are being written.
    saving: Vec<(u64, bool)>,
    /// Who of a generation has contributed to a step.
    reductions: BTreeMap<(Generation, u64), u64>,
    /// Workers that were ever started.
    started: u64,
    /// The generation whose state was handed over.
    handed_over: Option<Generation>,
    tally: Tally,
}

/// What happened in histories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    complete: u64,
    generations: u64,
    rewinds: u64,
    hand_overs: u64,
    restarts: u64,
    /// Steps that were recorded on the word of survivors.
    of_survivors: u64,
    /// Workers that were asked to leave because they are slow.
    expelled: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.complete += other.complete;
        self.generations += other.generations;
        self.rewinds += other.rewinds;
        self.hand_overs += other.hand_overs;
        self.restarts += other.restarts;
        self.of_survivors += other.of_survivors;
        self.expelled += other.expelled;
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let min_workers = 1 + dice.below(2) as usize;
        let slow = SlowPolicy { factor: 3.0, steps: 3, drain: true };
        let settings = Settings { min_workers, total_steps: STEPS, max_skipped: Some(3), slow, ..settings(WORKERS) };
        Self {
            dice,
            run: Run::new(settings),
            workers: Vec::new(),
            broken: Vec::new(),
            writing: VecDeque::new(),
            ledger: Vec::new(),
            checkpoint: None,
            epoch: 1,
            saving: Vec::new(),
            reductions: BTreeMap::new(),
            started: 0,
            handed_over: None,
            tally: Tally::default(),
        }
    }

    fn over(&self) -> bool {
        matches!(self.run.state.phase(), Phase::Over(_))
    }

    fn feed(&mut self, event: Event) {
        let before = self.run.state.generation();
        self.run.feed(event);
        let formed = self.run.formed();
        self.tally.generations += u64::from(!formed.is_empty());
        self.tally.hand_overs += u64::from(formed.iter().any(|(_, f)| f.state_source() == StateSource::Peer));
        let recorded = self.run.last.iter().filter(|e| matches!(e, Effect::Persist(_))).count() as u64;
        self.tally.of_survivors += if before.is_none() { recorded } else { 0 };
        for effect in self.run.last.clone() {
            match effect {
                Effect::Send { worker, message } => {
                    if let Some(worker) = self.workers.iter_mut().find(|w| w.session == Some(worker)) {
                        worker.hears.push_back(message);
                    }
                }
                Effect::Dismiss { worker, .. } => {
                    if let Some(worker) = self.workers.iter_mut().find(|w| w.session == Some(worker)) {
                        worker.lose_session();
                    }
                }
                Effect::Persist(_) | Effect::Rewind { .. } => self.writing.push_back(effect),
                _ => {}
            }
        }
    }

    /// The disk has done what it was asked first.
    fn write(&mut self) {
        let event = match self.writing.pop_front() {
            Some(Effect::Persist(commit)) => {
                assert_eq!(commit.step, self.ledger.len() as u64 + 1, "a gap in the ledger, or a step twice");
                assert_eq!(commit.not_finite, not_finite(commit.step), "step {}", commit.step);
                self.ledger.push((commit.step, commit.generation));
                Event::Committed { step: commit.step }
            }
            Some(Effect::Rewind { to }) => {
                self.tally.rewinds += 1;
                self.ledger.truncate(to as usize);
                Event::Rewound { to }
            }
            _ => return,
        };
        self.feed(event);
        let (committed, durable) = (self.run.state.committed(), self.ledger.len() as u64);
        assert!(committed <= durable, "step {committed} is committed, but the ledger ends with step {durable}");
    }

    /// The coordinator is killed and started again; what was not written is lost, and so are all sessions.
    fn restart(&mut self) {
        self.epoch += 1;
        self.tally.restarts += 1;
        self.writing.clear();
        let written = self.saving.iter().find(|(step, begun)| *begun && *step <= self.ledger.len() as u64);
        if let Some((step, _)) = written.filter(|_| self.dice.0.is_multiple_of(2)) {
            self.checkpoint = self.checkpoint.max(Some(*step));
        }
        self.saving.clear();
        self.broken.clear();
        self.workers.iter_mut().for_each(Worker::lose_session);
        let settings = Settings {
            epoch: self.epoch,
            last_generation: self.ledger.iter().map(|(_, g)| g.number).max().unwrap_or(0),
            recorded_generation: self.ledger.last().map(|(_, g)| *g).unwrap_or_default(),
            head: self.ledger.len() as u64,
            checkpoint: self.checkpoint,
            skipped: self.ledger.iter().map(|(step, _)| *step).filter(|step| !not_finite(*step).is_empty()).collect(),
            numerics: Some(fingerprint()),
            ..self.run.state.settings.clone()
        };
        let now = self.run.now;
        self.run = Run::new(settings);
        self.run.now = now;
    }

    fn start_worker(&mut self) {
        self.started += 1;
        self.workers.push(Worker {
            name: format!("w{}", self.started),
            slow: self.dice.one_in(6),
            session: None,
            held: None,
            place: None,
            says: VecDeque::new(),
            hears: VecDeque::new(),
            stopped: false,
            draining: false,
        });
    }

    /// A session breaks; the coordinator hears some of what was said in it, and then its end.
    fn hang_up(&mut self, who: usize) {
        let worker = &mut self.workers[who];
        if let Some(session) = worker.session {
            let mut words = std::mem::take(&mut worker.says);
            words.truncate(self.dice.below(words.len() as u64 + 1) as usize);
            self.broken.push((session, words));
        }
        worker.lose_session();
    }

    fn deliver(&mut self, session: WorkerId, said: Said) {
        let event = match said {
            Said::Connected => Event::Connected { worker: session },
            Said::Ready(held, left) => {
                let known = self.run.known(held.as_ref().map_or(0, |held| held.step));
                let ready = Ready { held, left, ..ready(fingerprint()) };
                Event::Ready { worker: session, ready, known }
            }
            Said::Report(report) => Event::StepReported { worker: session, report, planned: Some(PLAN) },
            Said::Draining => Event::Draining { worker: session, reason: "SIGTERM".into() },
            Said::Broken(generation) => {
                Event::GenerationFailed { worker: session, generation, reason: "a peer is gone".into() }
            }
            Said::Uploaded { step } => {
                // As the server does: a state that is recorded is kept, whoever sends it.
                let seat = self.run.state.generation().and_then(|g| self.run.state.seat(session, Some(g)).ok());
                if seat.is_some_and(|seat| seat.hand_over && seat.start_step == step) {
                    self.handed_over = self.run.state.generation();
                    if step != self.run.state.end_step() {
                        return;
                    }
                }
                self.saving.push((step, false));
                return;
            }
        };
        self.feed(event);
    }

    /// The store does the next thing: begins to write a state whose step is durable, or has written one.
    fn save(&mut self, fails: bool) {
        let newest = self.run.state.committed();
        let writes = self.saving.iter().position(|(_, begun)| *begun);
        let next = writes.or_else(|| self.saving.iter().position(|(step, _)| *step <= newest));
        let Some(at) = next else { return };
        let (step, begun) = self.saving[at];
        if !begun {
            self.saving[at].1 = true;
            self.feed(Event::CheckpointBegun { step });
            return;
        }
        self.saving.swap_remove(at);
        assert!(step <= self.ledger.len() as u64, "a checkpoint of a step that is void");
        if fails && step != STEPS {
            self.feed(Event::CheckpointFailed { step });
        } else if self.checkpoint < Some(step) {
            self.checkpoint = Some(step);
            self.feed(Event::CheckpointSaved { step });
        } else {
            self.feed(Event::CheckpointFailed { step });
        }
    }

    /// A worker does the next thing that it can do.
    fn act(&mut self, who: usize) {
        if self.workers[who].stopped {
            return;
        }
        let Some(session) = self.workers[who].session else {
            self.join(who);
            return;
        };
        match self.workers[who].hears.pop_front() {
            Some(Message::GenerationFormed(formed)) => {
                assert!(self.workers[who].place.is_none(), "a second generation at once");
                let place = Place { contributed: formed.start_step, formed, prepared: false, aborted: false };
                self.workers[who].place = Some(place);
            }
            Some(Message::AbortGeneration(abort)) => {
                let place = self.workers[who].place.as_mut();
                if let Some(place) = place.filter(|place| place.formed.generation == abort.generation) {
                    place.aborted = true;
                }
            }
            Some(Message::Goodbye(goodbye)) => {
                self.tally.expelled += u64::from(!goodbye.error_code.is_empty());
                assert!(goodbye.error_code.is_empty() || self.workers[who].slow, "the wrong one was expelled");
                self.hang_up(who);
                self.workers.remove(who);
            }
            Some(_) => {}
            None => self.train(who, session),
        }
    }

    fn join(&mut self, who: usize) {
        self.run.feed(Event::Join(join_request(&self.workers[who].name)));
        let expelled = |e: &Effect| matches!(e, Effect::Refuse(failure) if failure.code == ErrorCode::TooSlow);
        if self.run.last.iter().any(expelled) {
            self.workers.remove(who);
            return;
        }
        let admitted =
            self.run.last.iter().find_map(|e| if let Effect::Admit { worker } = e { Some(*worker) } else { None });
        let Some(session) = admitted else { return };
        let worker = &mut self.workers[who];
        worker.session = Some(session);
        worker.says.push_back(Said::Connected);
        worker.says.push_back(Said::Ready(worker.held.clone(), None));
        if worker.draining {
            worker.says.push_back(Said::Draining);
        }
    }

    fn train(&mut self, who: usize, session: WorkerId) {
        let Some(place) = self.workers[who].place.clone() else { return };
        let (generation, start) = (place.formed.generation.unwrap(), place.formed.start_step);
        let alive = self.run.state.generation() == Some(generation) && !self.over();
        if place.aborted || !alive {
            self.leave(who, generation);
            return;
        }
        if !place.prepared {
            self.prepare(who, generation, &place.formed);
            return;
        }
        let applied = self.workers[who].held.as_ref().map_or(0, |held| held.step).max(start);
        let world = u64::from(place.formed.world_size);
        if place.contributed > applied {
            let step = place.contributed;
            if self.reductions.get(&(generation, step)) == Some(&world) {
                let not_finite = not_finite(step);
                let report = report(generation, step, step as u8);
                let own_seconds = report.own_seconds * if self.workers[who].slow { SLOWER } else { 1.0 };
                let report = StepReport { not_finite, own_seconds, ..report };
                let state_sha256 = report.state_sha256.clone();
                let mut reports = self.workers[who].held.take().map(|held| held.reports).unwrap_or_default();
                reports.push(report.clone());
                self.workers[who].held = Some(HeldState { step, state_sha256, reports });
                self.workers[who].says.push_back(Said::Report(report));
                let (boundary, keep) = self.run.state.boundary();
                if place.formed.rank == 0 && (step.is_multiple_of(5) || (step, true) == (boundary, keep)) {
                    self.workers[who].says.push_back(Said::Uploaded { step });
                }
            } else if self.dice.one_in(50) {
                self.workers[who].says.push_back(Said::Broken(generation));
            }
            return;
        }
        if applied >= self.run.state.boundary().0 {
            self.leave(who, generation);
        } else if applied < self.run.state.horizon() && self.run.state.seat(session, Some(generation)).is_ok() {
            *self.reductions.entry((generation, applied + 1)).or_default() += 1;
            if let Some(place) = &mut self.workers[who].place {
                place.contributed = applied + 1;
            }
        }
    }

    /// Comes to the state that the generation starts from, if it is to be had already.
    fn prepare(&mut self, who: usize, generation: Generation, formed: &GenerationFormed) {
        let step = formed.start_step;
        let state = HeldState { step, state_sha256: vec![step as u8; 32].into(), reports: Vec::new() };
        let held = self.workers[who].held.as_ref().map_or(0, |held| held.step);
        match formed.state_source() {
            StateSource::Memory => assert_eq!(held, step, "told to keep a state that it does not have"),
            StateSource::Seed => {
                assert_eq!(step, 0);
                self.workers[who].held = None;
            }
            StateSource::Checkpoint => {
                assert_eq!(self.checkpoint, Some(step), "told to load a checkpoint that is not the newest");
                self.workers[who].held = Some(state);
            }
            StateSource::Peer if self.handed_over == Some(generation) => self.workers[who].held = Some(state),
            StateSource::Peer => return,
            StateSource::Unspecified => panic!("no source"),
        }
        if formed.hand_over {
            self.workers[who].says.push_back(Said::Uploaded { step });
        }
        if let Some(place) = &mut self.workers[who].place {
            place.prepared = true;
        }
    }

    fn leave(&mut self, who: usize, generation: Generation) {
        let worker = &mut self.workers[who];
        worker.place = None;
        worker.says.push_back(Said::Ready(worker.held.clone(), Some(generation)));
    }

    /// One event of what is right.
    fn fair(&mut self) {
        match self.dice.below(10) {
            0 | 1 => self.write(),
            2 => self.save(false),
            3 if !self.broken.is_empty() => {
                let at = self.dice.below(self.broken.len() as u64) as usize;
                match self.broken[at].1.pop_front() {
                    Some(said) => {
                        let session = self.broken[at].0;
                        self.deliver(session, said);
                    }
                    None => {
                        let (session, _) = self.broken.swap_remove(at);
                        self.feed(Event::Disconnected { worker: session });
                    }
                }
            }
            4 => {
                self.run.now += self.dice.below(12);
                // Those that live say so.
                let living: Vec<WorkerId> =
                    self.workers.iter().filter(|w| !w.stopped).filter_map(|w| w.session).collect();
                for worker in living {
                    let heartbeat = heartbeat(self.dice.next(), ballast_proto::v1::Phase::Compute);
                    self.feed(Event::Heartbeat { worker, heartbeat });
                }
                self.feed(Event::Tick);
            }
            _ if !self.workers.is_empty() => {
                let who = self.dice.below(self.workers.len() as u64) as usize;
                if self.dice.one_in(2) {
                    let worker = &mut self.workers[who];
                    if let (Some(session), false) = (worker.session, worker.stopped)
                        && let Some(said) = worker.says.pop_front()
                    {
                        self.deliver(session, said);
                    }
                } else {
                    self.act(who);
                }
            }
            _ => {}
        }
    }

    /// One event of what is wrong.
    fn foul(&mut self) {
        let who =
            if self.workers.is_empty() { None } else { Some(self.dice.below(self.workers.len() as u64) as usize) };
        match (self.dice.below(8), who) {
            (0, Some(who)) => {
                self.hang_up(who);
                self.workers.remove(who);
            }
            (1, Some(who)) => self.hang_up(who),
            (2, Some(who)) => self.workers[who].stopped ^= true,
            (3, Some(who)) if !self.workers[who].draining => {
                self.workers[who].draining = true;
                if self.workers[who].session.is_some() {
                    self.workers[who].says.push_back(Said::Draining);
                }
            }
            (4, _) => self.restart(),
            (5, _) => {
                for who in (0..self.workers.len()).rev() {
                    self.hang_up(who);
                    self.workers.remove(who);
                }
            }
            (6, _) => self.save(true),
            _ => self.run.now += 60,
        }
        if self.workers.len() < WORKERS {
            self.start_worker();
        }
    }

    /// One history, to its end.
    fn play(mut self) -> Tally {
        (0..WORKERS).for_each(|_| self.start_worker());
        for _ in 0..STORM {
            if self.over() {
                break;
            }
            if self.dice.one_in(60) { self.foul() } else { self.fair() }
        }
        self.workers.iter_mut().for_each(|worker| worker.stopped = false);
        for _ in 0..CALM {
            if self.over() {
                break;
            }
            if self.workers.iter().filter(|w| !w.draining).count() < WORKERS && self.workers.len() < WORKERS {
                self.start_worker();
            }
            self.fair();
        }
        let Phase::Over(outcome) = self.run.state.phase() else {
            let places: Vec<_> =
                self.workers.iter().map(|w| (w.session, &w.place, w.held.as_ref().map(|h| h.step))).collect();
            panic!("the run is stuck, {:?}: {:?}; {places:?}", self.run.state.waiting(), self.run.state);
        };
        // Faults that come faster than steps may end a run; a retry goes on from its directory.
        if outcome.exit_code == 0 {
            assert_eq!((self.ledger.len() as u64, self.checkpoint), (STEPS, Some(STEPS)));
            self.tally.complete = 1;
        } else {
            assert!(outcome.reason.contains("generations in succession failed"), "{}", outcome.reason);
        }
        self.tally
    }
}

fn not_finite(step: u64) -> Vec<NonFinite> {
    let skipped = SKIPPED.iter().filter(|(skipped, _)| *skipped == step);
    skipped.map(|(_, micro_batch)| NonFinite { micro_batch: *micro_batch, loss: false, gradient: true }).collect()
}

impl Worker {
    fn lose_session(&mut self) {
        self.session = None;
        self.place = None;
        self.says.clear();
        self.hears.clear();
    }
}

/// `BALLAST_SIMULATED_RUNS` histories from seed `BALLAST_SIMULATION_SEED` on; a failing one is told by its seed.
#[test]
fn runs_complete_whatever_happens_on_the_way() {
    let number = |name: &str, or: u64| {
        std::env::var(name).map_or(or, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
    };
    let (runs, first) = (number("BALLAST_SIMULATED_RUNS", 300), number("BALLAST_SIMULATION_SEED", 1));
    println!("BALLAST_SIMULATION_SEED={first} BALLAST_SIMULATED_RUNS={runs}");
    let mut all = Tally::default();
    for seed in first..first + runs {
        let played = std::panic::catch_unwind(|| World::new(seed).play());
        let again = "plays it again";
        all += played.unwrap_or_else(|_| panic!("BALLAST_SIMULATION_SEED={seed} BALLAST_SIMULATED_RUNS=1 {again}"));
    }
    println!(
        "{{\"measure\":\"simulated runs\",\"seed\":{first},\"runs\":{runs},\"violations\":0,\"complete\":{},\"generations\":{},\
         \"rewinds\":{},\"hand_overs\":{},\"restarts\":{},\"steps_of_survivors\":{},\"expelled\":{}}}",
        all.complete, all.generations, all.rewinds, all.hand_overs, all.restarts, all.of_survivors, all.expelled
    );
    // Otherwise this world is too kind.
    if runs >= 100 {
        assert!(all.complete * 10 >= runs * 9, "{all:?}");
        let Tally { generations, rewinds, hand_overs, restarts, of_survivors, .. } = all;
        assert!(generations > 5 * runs && 2 * rewinds > runs && hand_overs > runs && restarts > runs, "{all:?}");
        assert!(of_survivors > runs / 10 && all.expelled > runs / 10, "{all:?}");
    }
}
