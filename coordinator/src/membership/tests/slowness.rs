//! Workers that hold the others up.

use super::*;
use ballast_proto::{ErrorCode, exit};

fn slow(workers: usize, drain: bool) -> Settings {
    let slow = SlowPolicy { factor: 3.0, steps: 4, drain };
    Settings { total_steps: 40, prefetch_steps: 0, slow, ..settings(workers) }
}

/// All ranks report a step, in which each took its seconds for a token (none: it had nothing to do), and it becomes durable. What was
/// found.
fn commit(run: &mut Run, step: u64, seconds: &[f64]) -> Vec<SlowWorker> {
    let workers: Vec<_> = run.state.members().filter(|m| m.rank.is_some()).map(|m| m.worker).collect();
    for (worker, seconds) in workers.into_iter().zip(seconds) {
        let rank_tokens = if *seconds > 0.0 { 10 } else { 0 };
        let report =
            StepReport { own_seconds: seconds * 10.0, rank_tokens, ..report(run.generation(), step, step as u8) };
        run.feed(Event::StepReported { worker, report, planned: Some(PLAN) });
    }
    assert!(run.recorded(step), "{:?}", run.last);
    run.feed(Event::Committed { step });
    let found = |e: &Effect| if let Effect::Slow(slow) = e { Some(slow.clone()) } else { None };
    run.last.iter().filter_map(found).collect()
}

/// What was found in steps in succession, from the next one on.
fn commits(run: &mut Run, steps: &[impl AsRef<[f64]>]) -> Vec<SlowWorker> {
    let next = run.state.committed() + 1;
    (next..).zip(steps).flat_map(|(step, seconds)| commit(run, step, seconds.as_ref())).collect()
}

#[test]
fn who_is_behind_in_step_after_step_is_told_of_once() {
    let mut run = Run::training(slow(3, false));
    let found = commits(&mut run, &[&[1.0, 1.2, 3.9]; 9]);
    let [slow] = &found[..] else { panic!("{found:?}") };
    assert_eq!((slow.worker, slow.step, slow.behind, slow.of, slow.drained), (3, 4, 4, 4, false));
    assert!((slow.ratio - 3.9 / 1.1).abs() < 1e-9, "by the median of the others: {slow:?}");
    assert_eq!(
        slow.to_string(),
        "worker 3 (w2) is slow: it takes 3.5 times the seconds a token that the others take, in 4 of 4 steps"
    );
    assert_eq!(run.state.members().filter(|m| m.slow).map(|m| m.worker).collect::<Vec<_>>(), [3]);
    assert_eq!(*run.state.phase(), Phase::Training);
}

#[test]
fn hiccups_make_nobody_slow_and_acquit_nobody() {
    let even: &[f64] = &[1.0, 1.0, 1.0];
    let (own, of_others) = (&[1.0, 1.0, 50.0][..], &[9.0, 9.0, 4.0][..]);
    let behind: &[f64] = &[1.0, 1.0, 4.0];
    let cases: [(&str, [&[f64]; 4], bool); 4] = [
        ("one hiccup of its own", [even, own, even, even], false),
        ("two of four", [even, own, own, even], false),
        ("one hiccup of the others", [behind, of_others, behind, behind], true),
        ("just not so slow", [&[1.0, 1.0, 3.0]; 4], false),
    ];
    for (what, steps, is_slow) in cases {
        let mut run = Run::training(slow(3, false));
        assert_eq!(!commits(&mut run, &steps).is_empty(), is_slow, "{what}");
    }
}

#[test]
fn steps_in_which_there_is_nothing_to_compare_say_nothing() {
    // Alone, or the only one with something to do.
    let mut run = Run::training(slow(1, false));
    assert!(commits(&mut run, &[&[99.0]; 8]).is_empty());
    let mut run = Run::training(slow(3, false));
    assert!(commits(&mut run, &[&[0.0, 0.0, 99.0]; 8]).is_empty());
    // A rank that has nothing to do in every other step is judged by the rest.
    let behind: &[f64] = &[1.0, 1.0, 4.0];
    let idle: &[f64] = &[1.0, 1.0, 0.0];
    let steps = [behind, idle, behind, idle, behind, idle];
    assert!(commits(&mut run, &steps).is_empty(), "three steps are not four");
    assert_eq!(commits(&mut run, &[behind]).len(), 1);
    // Numbers that are none.
    let mut run = Run::training(slow(2, true));
    assert!(commits(&mut run, &[&[1.0, f64::INFINITY]; 8]).is_empty());
}

#[test]
fn of_two_the_slower_one_is_slow() {
    let mut run = Run::training(slow(2, false));
    let found = commits(&mut run, &[&[3.1, 1.0]; 4]);
    assert_eq!(found.iter().map(|slow| slow.worker).collect::<Vec<_>>(), [1]);
}

/// A slow worker leaves at a step boundary, with an error that says why, and is not let in again.
#[test]
fn a_slow_worker_is_drained_and_may_not_come_back() {
    let mut run = Run::training(slow(3, true));
    let found = commits(&mut run, &[&[1.0, 1.0, 4.0]; 4]);
    assert!(found.iter().map(|slow| (slow.worker, slow.drained)).eq([(3, true)]));
    let (last, _) = run.state.boundary();
    assert!(last < 40, "the generation ends");
    let first = run.generation();
    let more = (5..=last).map(|step| commit(&mut run, step, &[1.0, 9.0, 4.0])).collect::<Vec<_>>().concat();
    assert!(more.is_empty(), "one at a time");
    [1, 2, 3].into_iter().for_each(|worker| run.back(worker, first, last));
    let goodbye = run.sent().into_iter().find_map(|(worker, m)| match m {
        Message::Goodbye(goodbye) => Some((worker, goodbye)),
        _ => None,
    });
    let (worker, goodbye) = goodbye.unwrap();
    assert_eq!((worker, &*goodbye.error_code, goodbye.exit_code), (3, "B4018", u32::from(exit::RETRY)));
    assert!(goodbye.reason.contains("is slow"), "{}", goodbye.reason);
    assert_eq!((run.state.world_size(), run.state.phase()), (2, &Phase::Training));

    // The same process from another port, or its successor on the host.
    let again = JoinRequest { ring_address: "127.0.0.1:77".into(), ..join_request("w2") };
    let refused = run.feed(Event::Join(again)).to_vec();
    let refused = refused.iter().find_map(|e| if let Effect::Refuse(failure) = e { Some(failure) } else { None });
    assert_eq!(refused.unwrap().code, ErrorCode::TooSlow);
    // Of that name, but elsewhere; or from there, but another one.
    let elsewhere = JoinRequest { ring_address: "10.0.0.7:9".into(), ..join_request("w2") };
    for request in [elsewhere, join_request("w9")] {
        let admitted = run.feed(Event::Join(request)).iter().any(|e| matches!(e, Effect::Admit { .. }));
        let newest = run.state.members().map(|m| m.worker).max().unwrap();
        assert!(admitted);
        run.feed(Event::Disconnected { worker: newest });
    }
}

#[test]
fn so_many_stay_as_the_run_needs() {
    let mut run = Run::training(Settings { min_workers: 3, ..slow(3, true) });
    let found = commits(&mut run, &[&[1.0, 1.0, 4.0]; 8]);
    assert!(found.iter().map(|slow| slow.drained).eq([false]), "{found:?}");
    assert_eq!(run.state.boundary().0, 40);
    // By its own wish it may leave all the same, in peace.
    run.feed(Event::Draining { worker: 3, reason: "SIGTERM".into() });
    let (last, _) = run.state.boundary();
    let first = run.generation();
    (9..=last).for_each(|step| drop(commit(&mut run, step, &[1.0; 3])));
    [1, 2, 3].into_iter().for_each(|worker| run.back(worker, first, last));
    let left =
        |(worker, m): &(WorkerId, Message)| matches!(m, Message::Goodbye(g) if *worker == 3 && g.error_code.is_empty());
    assert!(run.sent().iter().any(left), "{:?}", run.sent());
}

#[test]
fn a_broken_generation_pardons_whom_it_was_to_lose() {
    let mut run = Run::training(slow(2, true));
    assert_eq!(commits(&mut run, &[&[4.0, 1.0]; 4]).len(), 1);
    let first = run.generation();
    run.feed(Event::Disconnected { worker: 2 });
    run.back(1, first, 4);
    assert_eq!((run.state.world_size(), run.state.phase()), (1, &Phase::Training));
    let (last, keep) = run.state.boundary();
    assert_eq!((last, keep), (40, true), "it trains on, alone");
    run.feed(Event::Disconnected { worker: 1 });
    assert!(run.feed(Event::Join(join_request("w0"))).iter().any(|e| matches!(e, Effect::Admit { .. })));
}

/// Asked to stop while it is on its way out, it leaves in peace, and may come back.
#[test]
fn its_own_wish_to_leave_goes_before() {
    let mut run = Run::training(slow(2, true));
    assert_eq!(commits(&mut run, &[&[4.0, 1.0]; 4]).len(), 1);
    run.feed(Event::Draining { worker: 1, reason: "SIGTERM".into() });
    let (first, (last, _)) = (run.generation(), run.state.boundary());
    (5..=last).for_each(|step| drop(commit(&mut run, step, &[1.0; 2])));
    [1, 2].into_iter().for_each(|worker| run.back(worker, first, last));
    let left =
        |(worker, m): &(WorkerId, Message)| matches!(m, Message::Goodbye(g) if *worker == 1 && g.error_code.is_empty());
    assert!(run.sent().iter().any(left), "{:?}", run.sent());
    assert!(run.feed(Event::Join(join_request("w0"))).iter().any(|e| matches!(e, Effect::Admit { .. })));
}
