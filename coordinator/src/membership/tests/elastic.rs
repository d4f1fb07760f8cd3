//! Losses, joins, leaves and restarts: who goes on, from which state, and what is done again.

use super::*;
use ballast_proto::v1::StateSource;
use ballast_proto::{ErrorCode, Failure, exit};

/// Rank, start and source of each rank of the generation that has just formed.
fn ranks(run: &Run) -> Vec<(WorkerId, u64, StateSource, bool)> {
    run.formed().iter().map(|(w, formed)| (*w, formed.start_step, formed.state_source(), formed.hand_over)).collect()
}

fn goodbyes(run: &Run) -> Vec<WorkerId> {
    run.sent().iter().filter(|(_, m)| matches!(m, Message::Goodbye(_))).map(|(worker, _)| *worker).collect()
}

/// A second coordinator, whose ledger ends with a step of generation 1.3.
fn restarted(workers: usize, head: u64, checkpoint: u64) -> Settings {
    Settings {
        epoch: 2,
        last_generation: 3,
        recorded_generation: Generation::new(1, 3),
        head,
        checkpoint: Some(checkpoint),
        ..settings(workers)
    }
}

fn rewound_to(run: &Run) -> Option<u64> {
    run.last.iter().find_map(|e| if let Effect::Rewind { to } = e { Some(*to) } else { None })
}

#[test]
fn survivors_of_a_loss_go_on_at_once_from_what_they_hold() {
    let mut run = Run::training(settings(3));
    run.commit(1);
    let first = run.generation();
    run.feed(Event::Disconnected { worker: 2 });
    let aborted: Vec<_> =
        run.sent().into_iter().filter(|(_, m)| matches!(m, Message::AbortGeneration(_))).map(|(w, _)| w).collect();
    assert_eq!((aborted, run.state.phase()), (vec![1, 3], &Phase::Gathering));
    run.back(1, first, 1);
    assert!(run.state.waiting().contains("worker 3 (w2) to come back"), "{}", run.state.waiting());
    run.back(3, first, 1);
    assert_eq!(run.generation(), Generation::new(1, 2));
    assert_eq!(ranks(&run), [(1, 1, StateSource::Memory, false), (3, 1, StateSource::Memory, false)]);
    run.commit(2);
}

#[test]
fn a_step_that_only_one_survivor_applied_counts_and_the_others_take_its_state() {
    let mut run = Run::training(settings(3));
    run.commit(1);
    let first = run.generation();
    // Step 2 was reduced on all ranks; one of them died before it could say so, and one was called back before it applied it.
    run.report(1, 2, 2);
    run.feed(Event::Disconnected { worker: 3 });
    run.back(1, first, 2);
    run.back(2, first, 1);
    assert!(run.recorded(2));
    assert_eq!(ranks(&run), [(1, 2, StateSource::Memory, true), (2, 2, StateSource::Peer, false)]);
    assert_eq!(
        run.state.seat(1, Some(run.generation())).unwrap(),
        Seat { rank: 0, world_size: 2, start_step: 2, hand_over: true }
    );
    run.feed(Event::Committed { step: 2 });
    run.commit(3);
}

#[test]
fn a_report_that_comes_after_the_abort_still_counts() {
    let mut run = Run::training(settings(2));
    let first = run.generation();
    run.feed(Event::Disconnected { worker: 2 });
    let late = report(first, 1, 1);
    run.feed(Event::StepReported { worker: 1, report: late, planned: Some(PLAN) });
    assert!(!run.recorded(1), "nobody knows yet what the survivors have");
    run.back(1, first, 1);
    assert!(run.recorded(1));
    assert_eq!(ranks(&run), [(1, 1, StateSource::Memory, false)]);
}

#[test]
fn a_step_that_only_the_dead_applied_is_done_again() {
    let mut run = Run::training(settings(2));
    run.commit(1);
    let first = run.generation();
    run.report(2, 2, 2);
    run.feed(Event::Disconnected { worker: 2 });
    run.back(1, first, 1);
    assert_eq!(ranks(&run), [(1, 1, StateSource::Memory, false)]);
    run.commit(2);
}

#[test]
fn survivors_that_disagree_stop_the_run() {
    let mut run = Run::training(settings(3));
    let first = run.generation();
    run.report(1, 1, 1);
    run.report(2, 1, 9);
    run.feed(Event::Disconnected { worker: 3 });
    run.back(1, first, 1);
    let ready = Ready { held: Some(held(first, 1, 9)), left: Some(first), ..ready(fingerprint()) };
    let known = run.known(1);
    run.feed(Event::Ready { worker: 2, ready, known });
    assert_eq!(run.outcome().failure.as_ref().unwrap().code, ErrorCode::StateDiverged);
}

#[test]
fn when_nobody_survives_the_ledger_goes_back_to_the_checkpoint() {
    let mut run = Run::training(settings(2));
    run.commit(1);
    run.feed(Event::CheckpointSaved { step: 1 });
    run.commit(2);
    run.commit(3);
    run.feed(Event::Disconnected { worker: 1 });
    run.feed(Event::Disconnected { worker: 2 });
    assert!(run.state.waiting().contains("0 of at least 1 workers"), "{}", run.state.waiting());
    let (a, b) = (run.join("a"), run.join("b"));
    run.ready(a);
    run.ready(b);
    assert_eq!(rewound_to(&run), Some(1));
    assert!(run.formed().is_empty(), "not before the ledger has it");
    // Written before the ledger went back; void.
    run.feed(Event::Committed { step: 4 });
    assert_eq!((run.state.committed(), run.state.recorded()), (1, 1));
    run.feed(Event::Rewound { to: 1 });
    assert_eq!(ranks(&run), [(a, 1, StateSource::Checkpoint, false), (b, 1, StateSource::Checkpoint, false)]);
    run.commit(2);
}

#[test]
fn a_checkpoint_that_is_being_saved_is_waited_for_before_anything_is_void() {
    for saved in [true, false] {
        let mut run = Run::training(settings(1));
        run.commit(1);
        run.commit(2);
        run.feed(Event::CheckpointBegun { step: 2 });
        run.feed(Event::Disconnected { worker: 1 });
        let a = run.join("a");
        run.ready(a);
        run.now = 50;
        run.feed(Event::Tick);
        assert_eq!((rewound_to(&run), run.state.waiting()), (None, "the checkpoint of step 2 to be saved"));
        if saved {
            run.feed(Event::CheckpointSaved { step: 2 });
            assert_eq!(ranks(&run), [(a, 2, StateSource::Checkpoint, false)]);
        } else {
            run.feed(Event::CheckpointFailed { step: 2 });
            assert_eq!(rewound_to(&run), Some(0));
        }
    }
}

#[test]
fn without_a_checkpoint_it_goes_back_to_the_seed() {
    let mut run = Run::training(settings(1));
    run.commit(1);
    run.feed(Event::Disconnected { worker: 1 });
    let a = run.join("a");
    run.ready(a);
    run.feed(Event::Rewound { to: 0 });
    assert_eq!(ranks(&run), [(a, 0, StateSource::Seed, false)]);
}

#[test]
fn a_generation_that_nobodys_state_depends_on_waits_for_all_but_not_for_ever() {
    let mut run = Run::new(settings(2));
    let a = run.join("a");
    run.ready(a);
    assert!(run.state.waiting().contains("1 of 2 workers are ready"), "{}", run.state.waiting());
    run.now = 49;
    run.feed(Event::Heartbeat { worker: a, heartbeat: heartbeat(1, ballast_proto::v1::Phase::Waiting) });
    run.feed(Event::Tick);
    assert_eq!(*run.state.phase(), Phase::Gathering);
    run.now = 50;
    run.feed(Event::Tick);
    assert_eq!((run.state.phase(), run.state.world_size()), (&Phase::Training, 1));
}

#[test]
fn below_the_least_number_the_run_waits_and_says_so() {
    let mut run = Run::training(Settings { min_workers: 2, ..settings(2) });
    let first = run.generation();
    run.feed(Event::Disconnected { worker: 2 });
    run.back(1, first, 0);
    assert_eq!(*run.state.phase(), Phase::Gathering);
    assert!(
        run.state.waiting().contains("1 of at least 2 workers are ready, 0 are loading"),
        "{}",
        run.state.waiting()
    );
    let b = run.join("b");
    run.ready(b);
    assert_eq!(run.state.world_size(), 2);
}

#[test]
fn a_joiner_enters_at_a_step_boundary() {
    let mut run = Run::training(settings(2));
    run.commit(1);
    let first = run.generation();
    run.feed(Event::Disconnected { worker: 2 });
    run.back(1, first, 1);
    let second = run.generation();
    let b = run.join("b");
    run.commit(2);
    run.ready(b);
    // What was streamed is trained first.
    let last = run.state.boundary().0;
    assert_eq!((last, run.state.horizon()), (4, 4));
    run.commit(3);
    run.commit(4);
    assert_eq!(run.state.horizon(), 4, "nothing more is streamed");
    run.back(1, second, 4);
    assert_eq!(ranks(&run), [(1, 4, StateSource::Memory, true), (b, 4, StateSource::Peer, false)]);
    run.commit(5);
}

#[test]
fn a_worker_that_was_asked_to_stop_leaves_at_a_step_boundary() {
    let mut run = Run::training(settings(2));
    run.commit(1);
    let first = run.generation();
    run.feed(Event::Draining { worker: 1, reason: "SIGTERM".into() });
    let (last, checkpoint) = run.state.boundary();
    assert_eq!((last, checkpoint), (run.state.horizon(), false), "the other one keeps the state");
    (2..=last).for_each(|step| run.commit(step));
    run.back(1, first, last);
    assert!(goodbyes(&run).is_empty(), "the other one is still in the generation");
    run.back(2, first, last);
    assert_eq!((goodbyes(&run), ranks(&run)), (vec![1], vec![(2, last, StateSource::Memory, false)]));
    assert_eq!(run.state.members().count(), 1);
}

#[test]
fn the_last_worker_leaves_when_a_checkpoint_keeps_what_it_knows() {
    let mut run = Run::training(settings(1));
    run.commit(1);
    let first = run.generation();
    run.feed(Event::Draining { worker: 1, reason: "SIGTERM".into() });
    let (last, checkpoint) = run.state.boundary();
    assert_eq!((last, checkpoint), (4, true), "the first step that is not streamed yet");
    (2..=last).for_each(|step| run.commit(step));
    run.back(1, first, last);
    assert!(goodbyes(&run).is_empty());
    run.feed(Event::CheckpointSaved { step: last });
    assert_eq!(goodbyes(&run), [1]);
    let b = run.join("b");
    run.ready(b);
    assert_eq!(ranks(&run), [(b, last, StateSource::Checkpoint, false)]);
}

#[test]
fn when_the_checkpoint_of_the_last_worker_fails_it_is_tried_again() {
    let mut run = Run::training(settings(1));
    let first = run.generation();
    run.feed(Event::Draining { worker: 1, reason: "SIGTERM".into() });
    let (last, checkpoint) = run.state.boundary();
    assert!(checkpoint);
    (1..=last).for_each(|step| run.commit(step));
    run.back(1, first, last);
    run.feed(Event::CheckpointFailed { step: last });
    assert_eq!(ranks(&run), [(1, last, StateSource::Memory, false)]);
    let (again, checkpoint) = run.state.boundary();
    assert!(again > last && checkpoint);
    (last + 1..=again).for_each(|step| run.commit(step));
    run.feed(Event::CheckpointSaved { step: again });
    run.back(1, run.generation(), again);
    assert_eq!(goodbyes(&run), [1]);
}

#[test]
fn a_leaving_worker_that_alone_holds_the_state_takes_part_until_another_has_it() {
    let mut run = Run::training(settings(2));
    run.commit(1);
    let first = run.generation();
    run.feed(Event::Disconnected { worker: 2 });
    run.back(1, first, 1);
    let second = run.generation();
    run.feed(Event::Draining { worker: 1, reason: "SIGTERM".into() });
    let b = run.join("b");
    run.ready(b);
    // The generation breaks before the checkpoint is taken.
    run.feed(Event::GenerationFailed { worker: 1, generation: second, reason: "r".into() });
    run.back(1, second, 1);
    assert_eq!(ranks(&run), [(1, 1, StateSource::Memory, true), (b, 1, StateSource::Peer, false)]);
    let third = run.generation();
    let last = run.state.boundary().0;
    (2..=last).for_each(|step| run.commit(step));
    run.back(1, third, last);
    run.back(b, third, last);
    assert_eq!((goodbyes(&run), ranks(&run)), (vec![1], vec![(b, last, StateSource::Memory, false)]));
}

/// They have the places, so nobody else could come.
#[test]
fn when_all_want_to_leave_below_the_least_number_a_checkpoint_is_taken_all_the_same() {
    let mut run = Run::training(Settings { min_workers: 2, ..settings(2) });
    run.commit(1);
    let first = run.generation();
    for worker in [1, 2] {
        run.feed(Event::Draining { worker, reason: "SIGTERM".into() });
    }
    run.feed(Event::GenerationFailed { worker: 1, generation: first, reason: "r".into() });
    run.back(1, first, 1);
    run.back(2, first, 1);
    assert_eq!(ranks(&run), [(1, 1, StateSource::Memory, false)]);
    let (last, checkpoint) = run.state.boundary();
    assert!(checkpoint);
    (2..=last).for_each(|step| run.commit(step));
    run.feed(Event::CheckpointSaved { step: last });
    run.back(1, run.generation(), last);
    assert_eq!(run.state.members().count(), 0);
}

#[test]
fn workers_that_load_or_wait_leave_at_once() {
    let mut run = Run::new(Settings { min_workers: 2, ..settings(3) });
    let (a, b) = (run.join("a"), run.join("b"));
    run.ready(a);
    for worker in [a, b] {
        run.feed(Event::Draining { worker, reason: "SIGTERM".into() });
        assert_eq!(goodbyes(&run), [worker]);
    }
}

#[test]
fn a_new_coordinator_goes_on_with_workers_that_kept_their_state() {
    let mut run = Run::new(restarted(2, 4, 2));
    let (a, b) = (run.join("a"), run.join("b"));
    run.ready_with(a, held(Generation::new(1, 3), 4, 4));
    run.ready_with(b, held(Generation::new(1, 3), 3, 3));
    assert_eq!(rewound_to(&run), None);
    assert_eq!(ranks(&run), [(a, 4, StateSource::Memory, true), (b, 4, StateSource::Peer, false)]);
    run.commit(5);
}

#[test]
fn a_step_that_the_old_coordinator_did_not_live_to_record_is_recorded() {
    let mut run = Run::new(restarted(1, 4, 2));
    let a = run.join("a");
    run.ready_with(a, held(Generation::new(1, 3), 5, 5));
    assert!(run.recorded(5));
    assert_eq!(ranks(&run), [(a, 5, StateSource::Memory, false)]);
}

#[test]
fn states_that_the_ledger_does_not_vouch_for_are_not_used() {
    let settings = restarted(1, 4, 4);
    let cases: [(&str, HeldState); 5] = [
        ("of another content", held(Generation::new(1, 3), 4, 9)),
        ("two steps ahead", held(Generation::new(1, 3), 6, 6)),
        ("ahead, without a report", HeldState { reports: Vec::new(), ..held(Generation::new(1, 3), 5, 5) }),
        ("ahead, of an epoch to come", held(Generation::new(3, 3), 5, 5)),
        (
            "ahead, with a report of another state",
            HeldState { state_sha256: vec![7; 32].into(), ..held(Generation::new(1, 3), 5, 5) },
        ),
    ];
    for (what, held) in cases {
        let mut run = Run::new(settings.clone());
        let a = run.join("a");
        run.ready_with(a, held);
        assert!(
            run.last
                .iter()
                .any(|e| matches!(e, Effect::Note { level: Level::Warn, reason } if reason.contains("does not know"))),
            "{what}"
        );
        assert_eq!(ranks(&run), [(a, 4, StateSource::Checkpoint, false)], "{what}");
    }
}

#[test]
fn when_the_newest_step_died_with_its_holders_an_older_live_state_is_nearer_than_a_checkpoint() {
    let mut run = Run::new(restarted(1, 5, 2));
    let a = run.join("a");
    run.ready_with(a, held(Generation::new(1, 3), 4, 4));
    assert_eq!(rewound_to(&run), Some(4));
    run.feed(Event::Rewound { to: 4 });
    assert_eq!(ranks(&run), [(a, 4, StateSource::Memory, false)]);
}

#[test]
fn the_checkpoint_of_the_last_step_is_asked_for_again_when_it_was_lost_on_its_way() {
    let mut run = Run::training(Settings { total_steps: 2, ..settings(2) });
    run.commit(1);
    run.commit(2);
    let first = run.generation();
    run.feed(Event::Disconnected { worker: 1 });
    run.back(2, first, 2);
    assert_eq!(ranks(&run), [(2, 2, StateSource::Memory, true)]);
    run.feed(Event::CheckpointSaved { step: 2 });
    assert_eq!(run.outcome().exit_code, exit::DONE);
}

#[test]
fn a_failure_that_would_meet_everyone_ends_the_run_and_a_passing_one_does_not() {
    for (code, over) in [(ErrorCode::NonFinite, true), (ErrorCode::DeviceFailed, false)] {
        let mut run = Run::training(settings(2));
        run.feed(Event::Leaving { worker: 2, failure: Some(Failure::new(code, "m")) });
        assert_eq!(matches!(run.state.phase(), Phase::Over(_)), over, "{code:?}");
    }
}

#[test]
fn generations_that_fail_again_and_again_end_the_run() {
    let mut run = Run::training(settings(1));
    for round in 1.. {
        let generation = run.generation();
        run.feed(Event::GenerationFailed { worker: 1, generation, reason: "a frame was malformed".into() });
        if let Phase::Over(outcome) = run.state.phase() {
            assert_eq!((round, outcome.failure.as_ref().unwrap().code), (16, ErrorCode::CollectiveFailed));
            return;
        }
        run.back(1, generation, 0);
    }
}

#[test]
fn a_worker_that_is_called_back_and_does_not_come_is_lost() {
    use ballast_proto::v1::Phase::{Compute, Reduce, Waiting};
    for phase in [Compute, Reduce, Waiting] {
        let mut run = Run::training(settings(2));
        let first = run.generation();
        run.feed(Event::Heartbeat { worker: 1, heartbeat: heartbeat(1, phase) });
        run.feed(Event::Disconnected { worker: 2 });
        while run.now < 300 {
            assert_eq!(run.state.members().count(), 1, "{phase:?}");
            run.now += 10;
            run.feed(Event::Heartbeat { worker: 1, heartbeat: heartbeat(1, phase) });
            run.feed(Event::Tick);
        }
        assert_eq!(run.state.members().count(), 0, "{phase:?}");
        let hung = |e: &Effect| matches!(e, Effect::Dismiss { failure, .. } if failure.message.contains("stood still"));
        assert!(run.last.iter().any(hung), "{phase:?}");
        // What it says later decides nothing.
        run.back(1, first, 0);
        assert_eq!(*run.state.phase(), Phase::Gathering);
    }
}

#[test]
fn a_stop_does_not_wait_for_workers_that_nobody_starts() {
    let mut run = Run::training(settings(1));
    run.commit(1);
    run.feed(Event::StopRequested { reason: "SIGTERM".into() });
    run.feed(Event::Disconnected { worker: 1 });
    assert!(run.outcome().reason.contains("SIGTERM: stopped after step 1"), "{}", run.outcome().reason);
}

#[test]
fn a_step_of_an_older_generation_than_the_newest_recorded_one_is_not_recorded() {
    let mut run = Run::new(restarted(1, 4, 4));
    let a = run.join("a");
    run.ready_with(a, held(Generation::new(1, 2), 5, 5));
    assert!(!run.recorded(5));
    assert_eq!(ranks(&run), [(a, 4, StateSource::Checkpoint, false)]);
}

/// Two workers come with steps that different generations did: the newer one again what the older one did first.
fn with_steps_of_two_generations(older: &[u64]) -> Run {
    let mut run = Run::new(restarted(2, 4, 4));
    let (a, b) = (run.join("a"), run.join("b"));
    run.ready_with(a, held(Generation::new(1, 5), 5, 5));
    let older_one = Generation::new(1, 4);
    let reports = older.iter().map(|step| report(older_one, *step, *step as u8)).collect();
    run.ready_with(b, HeldState { reports, ..held(older_one, 6, 6) });
    run
}

#[test]
fn what_was_done_twice_is_recorded_of_the_generation_whose_next_step_is_known() {
    let run = with_steps_of_two_generations(&[5, 6]);
    let of =
        |e: &Effect| if let Effect::Persist(commit) = e { Some((commit.step, commit.generation.number)) } else { None };
    assert_eq!(run.last.iter().filter_map(of).collect::<Vec<_>>(), [(5, 4), (6, 4)]);
    assert_eq!(ranks(&run), [(1, 6, StateSource::Peer, false), (2, 6, StateSource::Memory, true)]);
}

/// The number of a generation that recorded nothing is given out again by the next coordinator.
#[test]
fn numbers_of_generations_count_within_their_epoch() {
    let recorded_generation = Generation::new(2, 2);
    let mut run = Run::new(Settings { last_generation: 2, recorded_generation, ..restarted(1, 4, 4) });
    let a = run.join("a");
    run.ready_with(a, held(Generation::new(1, 2), 5, 5));
    assert!(!run.recorded(5), "of an older epoch than the step before it");
    assert_eq!(ranks(&run), [(a, 4, StateSource::Checkpoint, false)]);

    let recorded_generation = Generation::new(1, 5);
    let mut run = Run::new(Settings { epoch: 3, recorded_generation, ..restarted(1, 4, 4) });
    let a = run.join("a");
    run.ready_with(a, held(Generation::new(2, 4), 5, 5));
    assert!(run.recorded(5), "of a newer epoch, with a smaller number");
}

#[test]
fn a_step_that_only_an_older_generation_did_is_done_again() {
    let run = with_steps_of_two_generations(&[6]);
    assert!(run.recorded(5) && !run.recorded(6));
    assert_eq!(ranks(&run), [(1, 5, StateSource::Memory, true), (2, 5, StateSource::Peer, false)]);
}

#[test]
fn steps_in_succession_that_the_old_coordinator_did_not_live_to_record_are_recorded() {
    let mut run = Run::new(restarted(1, 2, 2));
    let a = run.join("a");
    let generation = Generation::new(1, 3);
    let reports = (1..=5).map(|step| report(generation, step, step as u8)).collect();
    run.ready_with(a, HeldState { reports, ..held(generation, 5, 5) });
    assert!((3..=5).all(|step| run.recorded(step)));
    assert_eq!(ranks(&run), [(a, 5, StateSource::Memory, false)]);
}

#[test]
fn a_message_that_makes_no_sense_costs_its_sender_its_place_and_not_the_run() {
    let mut run = Run::training(settings(2));
    let first = run.generation();
    run.feed(Event::Breach { worker: 2, failure: Failure::new(ErrorCode::BadMessage, "an empty message") });
    run.back(1, first, 0);
    assert_eq!((run.state.phase(), run.state.world_size()), (&Phase::Training, 1));
}
