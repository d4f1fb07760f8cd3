//! Random histories: whatever happens, in whatever order, the invariants hold.

use super::*;
use ballast_proto::{ErrorCode, Failure};
use proptest::prelude::*;

/// An event with its parts drawn from few values, so that they often fit together.
#[derive(Clone, Debug)]
enum Draw {
    Join(bool),
    Connected(u64),
    Ready(u64, bool),
    Back { worker: u64, ahead: u64, state: u8 },
    Drain(u64),
    Rewound,
    Heartbeat(u64, u64, i32),
    Report { worker: u64, ahead: u64, state: u8, stale: bool },
    Acknowledge(u64),
    Save(u64),
    SaveBegins(u64),
    SaveFails(u64),
    Communicator(u64, bool),
    GenerationFailed(u64),
    Leave(u64, bool),
    Disconnect(u64),
    Evaluated,
    Stop,
    Fail,
    Wait(u64),
}

fn draw() -> impl Strategy<Value = Draw> {
    let worker = 1u64..5;
    prop_oneof![
        4 => prop::bool::weighted(0.9).prop_map(Draw::Join),
        6 => worker.clone().prop_map(Draw::Connected),
        6 => (worker.clone(), prop::bool::weighted(0.95)).prop_map(|(w, fits)| Draw::Ready(w, fits)),
        10 => (worker.clone(), 0u64..4, prop::bool::weighted(0.05)).prop_map(
            |(worker, ahead, wrong)| Draw::Back { worker, ahead, state: u8::from(wrong) }
        ),
        1 => worker.clone().prop_map(Draw::Drain),
        3 => Just(Draw::Rewound),
        4 => (worker.clone(), 0u64..4, 0i32..7).prop_map(|(w, p, phase)| Draw::Heartbeat(w, p, phase)),
        20 => (worker.clone(), 0u64..3, prop::bool::weighted(0.02), prop::bool::weighted(0.05)).prop_map(
            |(worker, ahead, wrong, stale)| Draw::Report { worker, ahead, state: u8::from(wrong), stale }
        ),
        10 => (0u64..3).prop_map(Draw::Acknowledge),
        6 => (0u64..3).prop_map(Draw::Save),
        4 => (0u64..3).prop_map(Draw::SaveBegins),
        2 => (0u64..3).prop_map(Draw::SaveFails),
        2 => (worker.clone(), prop::bool::weighted(0.1)).prop_map(|(w, stale)| Draw::Communicator(w, stale)),
        1 => worker.clone().prop_map(Draw::GenerationFailed),
        1 => (worker.clone(), any::<bool>()).prop_map(|(w, peace)| Draw::Leave(w, peace)),
        1 => worker.prop_map(Draw::Disconnect),
        1 => Just(Draw::Evaluated),
        1 => Just(Draw::Stop),
        1 => prop::bool::weighted(0.1).prop_map(|fails| if fails { Draw::Fail } else { Draw::Evaluated }),
        4 => (0u64..60).prop_map(Draw::Wait),
    ]
}

fn event(run: &Run, draw: Draw) -> Event {
    let committed = run.state.committed();
    match draw {
        Draw::Join(fits) => {
            Event::Join(JoinRequest { version: if fits { "1" } else { "0" }.into(), ..join_request("w") })
        }
        Draw::Connected(worker) => Event::Connected { worker },
        Draw::Ready(worker, fits) => {
            let arithmetic = if fits { "avx2" } else { "other" }.into();
            let ready = ready(NumericsFingerprint { arithmetic, ..run.fingerprint.clone() });
            Event::Ready { worker, ready, known: KnownStep::default() }
        }
        // From the newest generation, or from another coordinator's.
        Draw::Back { worker, ahead, state } => {
            let newest = Generation::new(run.state.settings.epoch, run.state.last_generation);
            let engaged = run.state.members.get(&worker).is_some_and(|member| member.engaged());
            let step = (committed + ahead).saturating_sub(1);
            let held = (step > 0).then(|| held(newest, step, state));
            let ready = Ready { held, left: engaged.then_some(newest), ..ready(run.fingerprint.clone()) };
            Event::Ready { worker, ready, known: run.known(step) }
        }
        Draw::Drain(worker) => Event::Draining { worker, reason: "r".into() },
        Draw::Rewound => Event::Rewound { to: committed },
        Draw::Heartbeat(worker, progress, phase) => {
            Event::Heartbeat { worker, heartbeat: Heartbeat { progress, phase } }
        }
        Draw::Report { worker, ahead, state, stale } => {
            let newest = run.state.generation().unwrap_or_default();
            let generation = if stale { Generation::new(0, 1) } else { newest };
            let step = committed + 1 + ahead;
            Event::StepReported { worker, report: report(generation, step, state), planned: Some(PLAN) }
        }
        Draw::Acknowledge(ahead) => Event::Committed { step: committed + ahead },
        Draw::SaveBegins(back) => Event::CheckpointBegun { step: (committed + 1).saturating_sub(back) },
        Draw::SaveFails(back) => Event::CheckpointFailed { step: (committed + 1).saturating_sub(back) },
        Draw::Save(back) => Event::CheckpointSaved { step: (committed + 1).saturating_sub(back) },
        Draw::Communicator(worker, stale) => {
            let newest = run.state.generation().unwrap_or_default();
            Event::CommunicatorMade { worker, id: communicator(if stale { Generation::new(0, 1) } else { newest }) }
        }
        Draw::GenerationFailed(worker) => {
            let generation = run.state.generation().unwrap_or_default();
            Event::GenerationFailed { worker, generation, reason: "r".into() }
        }
        Draw::Leave(worker, peace) => {
            let failure = Failure::new(ErrorCode::OutOfMemory, "m");
            Event::Leaving { worker, failure: (!peace).then_some(failure) }
        }
        Draw::Disconnect(worker) => Event::Disconnected { worker },
        Draw::Evaluated => Event::EvaluationFinished,
        Draw::Stop => Event::StopRequested { reason: "s".into() },
        Draw::Fail => Event::Failed(Failure::new(ErrorCode::StorageFailed, "f")),
        Draw::Wait(_) => Event::Tick,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// [`Run::feed`] checks the state and the trace after every event.
    #[test]
    fn invariants_hold_in_every_history(
        workers in 1usize..4,
        evaluate: bool,
        resumed: bool,
        cuda: bool,
        draws in prop::collection::vec(draw(), 1..200),
    ) {
        let (head, checkpoint) = if resumed { (3, Some(2)) } else { (0, None) };
        let mut run = Run::new(Settings { evaluate, head, checkpoint, ..settings(workers) });
        run.fingerprint.backend = if cuda { "cuda" } else { "cpu" }.into();
        for draw in draws {
            if let Draw::Wait(time) = draw {
                run.now += time;
            }
            let event = event(&run, draw);
            run.feed(event);
        }
    }

    /// A fair schedule of the right events always completes the run, whatever order ranks report in.
    #[test]
    fn a_run_without_faults_completes(workers in 1usize..5, order in prop::collection::vec(any::<prop::sample::Index>(), 64)) {
        let mut run = Run::training(settings(workers));
        let mut order = order.into_iter().cycle();
        let mut next: Vec<u64> = vec![1; workers];
        while *run.state.phase() == Phase::Training {
            let may: Vec<usize> = (0..workers).filter(|w| next[*w] <= run.state.horizon()).collect();
            if may.is_empty() {
                break;
            }
            let who = may[order.next().unwrap().index(may.len())];
            let step = next[who];
            next[who] += 1;
            run.report(who as u64 + 1, step, step as u8);
            while run.recorded(run.state.committed() + 1) {
                let step = run.state.committed() + 1;
                run.feed(Event::Committed { step });
                run.feed(Event::CheckpointSaved { step });
            }
        }
        prop_assert_eq!(run.outcome().exit_code, 0);
    }

    /// The same events at the same times have the same effects.
    #[test]
    fn histories_repeat(draws in prop::collection::vec(draw(), 1..60)) {
        let play = || {
            let mut run = Run::training(settings(2));
            let mut effects = Vec::new();
            for draw in draws.clone() {
                let event = event(&run, draw);
                run.now += 7;
                effects.extend(run.feed(event).to_vec());
            }
            effects
        };
        prop_assert_eq!(play(), play());
    }
}

#[test]
fn the_checks_can_fail() {
    let mut run = Run::training(settings(2));
    run.state.committed = 3;
    assert!(check(&run.state).is_err());
    let mut trace = Trace::default();
    let admitted = [Effect::Admit { worker: 1 }];
    trace.observe(&run.state, &admitted).unwrap();
    assert!(trace.observe(&run.state, &admitted).is_err());
}
