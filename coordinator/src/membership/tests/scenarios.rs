//! One test a decision.

use super::*;
use ballast_proto::{ErrorCode, Failure, exit, v1};

fn refusal(run: &Run) -> &Failure {
    run.last.iter().find_map(|e| if let Effect::Refuse(f) = e { Some(f) } else { None }).unwrap()
}

fn dismissal(run: &Run) -> (WorkerId, &Failure) {
    let dismissed = |e: &'_ Effect| matches!(e, Effect::Dismiss { .. });
    match run.last.iter().find(|e| dismissed(e)) {
        Some(Effect::Dismiss { worker, failure }) => (*worker, failure),
        _ => panic!("nobody was dismissed: {:?}", run.last),
    }
}

#[test]
fn a_generation_forms_when_all_are_ready_with_ranks_in_order_of_admission() {
    let mut run = Run::new(settings(3));
    let ids = [run.join("a"), run.join("b"), run.join("c")];
    run.ready(ids[2]);
    run.ready(ids[0]);
    assert_eq!((run.state.phase(), run.state.generation()), (&Phase::Gathering, None));
    run.ready(ids[1]);
    let formed: Vec<_> = run.sent();
    assert_eq!(formed.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), ids);
    for (rank, (_, message)) in formed.iter().enumerate() {
        let Message::GenerationFormed(formed) = message else { panic!("{message:?}") };
        assert_eq!((formed.rank as usize, formed.start_step), (rank, 0));
        assert_eq!(formed.generation, Some(Generation::new(1, 1)));
        assert_eq!((formed.world_size, formed.state_source()), (3, v1::StateSource::Seed));
    }
}

#[test]
fn a_resumed_run_starts_from_its_checkpoint_in_a_generation_never_used_before() {
    let resumed = Settings {
        epoch: 2,
        last_generation: 5,
        recorded_generation: Generation::new(1, 5),
        head: 4,
        checkpoint: Some(4),
        ..settings(1)
    };
    let run = Run::training(resumed);
    assert_eq!(run.generation(), Generation::new(2, 6));
    let Message::GenerationFormed(formed) = run.sent()[0].1.clone() else { panic!() };
    assert_eq!((formed.start_step, formed.state_source()), (4, v1::StateSource::Checkpoint));
}

#[test]
fn misfits_are_refused_at_the_door() {
    let mut run = Run::new(settings(1));
    for (request, code) in [
        (JoinRequest { version: "2".into(), ..join_request("a") }, ErrorCode::VersionMismatch),
        (JoinRequest { ring_address: "nowhere".into(), ..join_request("a") }, ErrorCode::BadMessage),
        (JoinRequest { ring_address: "host:0".into(), ..join_request("a") }, ErrorCode::BadMessage),
        (JoinRequest { display_name: "a\nb".into(), ..join_request("a") }, ErrorCode::BadMessage),
        (JoinRequest { display_name: "x".repeat(257), ..join_request("a") }, ErrorCode::BadMessage),
    ] {
        run.feed(Event::Join(request));
        assert_eq!(refusal(&run).code, code);
    }
    run.join("a");
    run.feed(Event::Join(join_request("b")));
    assert_eq!(refusal(&run).code, ErrorCode::RunFull);
    assert!(refusal(&run).message.contains("already has its 1 workers"));
}

#[test]
fn another_model_and_other_arithmetic_are_refused_with_the_difference_named() {
    let mut run = Run::new(settings(2));
    let (a, b) = (run.join("a"), run.join("b"));
    run.feed(Event::Connected { worker: a });
    let other = NumericsFingerprint { weights_sha256: "other".into(), ..fingerprint() };
    run.feed(Event::Ready { worker: a, ready: ready(other), known: KnownStep::default() });
    assert_eq!(dismissal(&run).1.code, ErrorCode::ModelMismatch);
    run.ready(b);
    assert!(run.last.iter().any(|e| matches!(e, Effect::RecordNumerics(f) if *f == fingerprint())));
    let c = run.join("c");
    run.feed(Event::Connected { worker: c });
    let other = NumericsFingerprint { arithmetic: "avx512".into(), ..fingerprint() };
    run.feed(Event::Ready { worker: c, ready: ready(other), known: KnownStep::default() });
    let (worker, failure) = dismissal(&run);
    assert_eq!((worker, failure.code), (c, ErrorCode::NumericsMismatch));
    assert!(failure.message.contains("its arithmetic is \"avx512\", the run's is \"avx2\""), "{failure}");
    // The place is free again, and the run goes on.
    let d = run.join("d");
    run.ready(d);
    assert_eq!(*run.state.phase(), Phase::Training);
}

#[test]
fn the_arithmetic_of_a_resumed_run_is_the_one_on_record() {
    let recorded = NumericsFingerprint { binary_sha256: "older".into(), ..fingerprint() };
    let mut run = Run::new(Settings { numerics: Some(recorded), ..settings(1) });
    let a = run.join("a");
    run.ready(a);
    assert_eq!(dismissal(&run).1.code, ErrorCode::NumericsMismatch);
}

#[test]
fn a_worker_that_fails_before_training_is_replaced() {
    let mut run = Run::new(settings(2));
    let a = run.join("a");
    let failure = Failure::new(ErrorCode::ModelTensor, "tensor x is missing");
    run.feed(Event::Leaving { worker: a, failure: Some(failure) });
    assert_eq!((dismissal(&run).1.code, run.state.phase()), (ErrorCode::ModelTensor, &Phase::Gathering));
    let (b, c) = (run.join("b"), run.join("c"));
    run.ready(b);
    run.ready(c);
    assert_eq!(*run.state.phase(), Phase::Training);
}

#[test]
fn a_step_is_recorded_when_all_ranks_agree_and_committed_when_durable() {
    let mut run = Run::training(settings(2));
    run.report(1, 1, 7);
    assert!(!run.recorded(1));
    run.report(2, 1, 7);
    assert!(run.recorded(1));
    assert_eq!((run.state.committed(), run.state.horizon()), (0, 1));
    run.feed(Event::Committed { step: 1 });
    assert_eq!((run.state.committed(), run.state.horizon()), (1, 3));
}

#[test]
fn a_fast_rank_may_report_ahead_and_steps_are_recorded_in_order() {
    let mut run = Run::training(settings(2));
    run.commit(1);
    run.report(1, 2, 2);
    run.report(1, 3, 3);
    run.report(2, 2, 2);
    assert!(run.recorded(2) && !run.recorded(3));
    run.report(2, 3, 3);
    assert!(run.recorded(3));
    // Both are under way to the ledger; a stale or early acknowledgement changes nothing.
    run.feed(Event::Committed { step: 3 });
    assert_eq!(run.state.committed(), 1);
    run.feed(Event::Committed { step: 2 });
    run.feed(Event::Committed { step: 2 });
    assert_eq!(run.state.committed(), 2);
}

#[test]
fn data_runs_ahead_of_short_steps_only() {
    let mut run = Run::training(Settings { total_steps: 100, prefetch_steps: 3, ..settings(1) });
    let ahead = |run: &Run| run.state.horizon() - run.state.committed();
    assert_eq!(ahead(&run), 1, "nothing is known of the first step");
    for (number, took, expected) in [
        (1, 2500, 1),
        (2, 1000, 1),
        (3, 1000, 4),
        (4, 1999, 4),
        (5, 2000, 3),
        (6, 2000, 2),
        (7, 2000, 1),
        (8, 0, 1),
        (9, 0, 4),
    ] {
        run.now += took;
        run.commit(number);
        assert_eq!(ahead(&run), expected, "after step {number}");
    }
}

#[test]
fn a_stop_during_long_steps_waits_for_the_next_one_only() {
    let mut run = Run::training(Settings { total_steps: 100, prefetch_steps: 3, ..settings(1) });
    run.now += 5000;
    run.commit(1);
    run.feed(Event::StopRequested { reason: "signal".into() });
    assert_eq!(run.state.end_step(), 3);
}

#[test]
fn a_rank_that_differs_is_named() {
    let mut run = Run::training(settings(3));
    for (worker, state) in [(1, 7), (2, 8), (3, 7)] {
        run.report(worker, 1, state);
    }
    let failure = run.outcome().failure.clone().unwrap();
    assert_eq!((failure.code, run.outcome().exit_code), (ErrorCode::StateDiverged, exit::FAILED));
    assert!(failure.message.contains("worker 2 (w1) differs"), "{failure}");
    assert!(!run.last.iter().any(|e| matches!(e, Effect::Persist(_))));
}

#[test]
fn two_ranks_that_differ_are_both_named() {
    let mut run = Run::training(settings(2));
    run.report(1, 1, 7);
    run.report(2, 1, 8);
    assert!(run.outcome().reason.contains("worker 1 (w0) and worker 2 (w1) differs"), "{}", run.outcome().reason);
}

#[test]
fn reports_that_break_the_protocol_cost_the_membership() {
    let good = |generation| report(generation, 1, 1);
    type Forge = fn(StepReport) -> StepReport;
    let forged: [(&str, Forge); 6] = [
        ("skips a step", |r| StepReport { step: 2, ..r }),
        ("is beyond the horizon", |r| StepReport { step: 99, ..r }),
        ("has no generation", |r| StepReport { generation: None, ..r }),
        ("is of a future generation", |r| StepReport { generation: Some(Generation::new(1, 9)), ..r }),
        ("counts other tokens than the plan", |r| StepReport { tokens: 21, ..r }),
        ("has a short hash", |r| StepReport { state_sha256: vec![1; 31].into(), ..r }),
    ];
    for (what, forge) in forged {
        let mut run = Run::training(settings(2));
        let report = forge(good(run.generation()));
        run.feed(Event::StepReported { worker: 2, report, planned: Some(PLAN) });
        assert_eq!((dismissal(&run).0, dismissal(&run).1.code), (2, ErrorCode::BadMessage), "{what}");
        assert_eq!(*run.state.phase(), Phase::Gathering, "{what}: the others go on without it");
    }
}

#[test]
fn a_step_reported_twice_costs_the_membership() {
    let mut run = Run::training(settings(2));
    run.report(2, 1, 1);
    run.report(2, 1, 1);
    assert_eq!(dismissal(&run).0, 2);
}

#[test]
fn reports_of_an_older_generation_are_ignored() {
    let mut run = Run::training(Settings { epoch: 2, ..settings(1) });
    let report = report(Generation::new(1, 9), 1, 1);
    run.feed(Event::StepReported { worker: 1, report, planned: Some(PLAN) });
    assert_eq!(*run.state.phase(), Phase::Training);
    assert!(run.last.iter().all(|e| matches!(e, Effect::Note { .. })));
}

#[test]
fn numbers_that_are_none_stop_the_run() {
    let mut run = Run::training(settings(2));
    let report = StepReport { loss: f64::NAN, ..report(run.generation(), 1, 1) };
    run.feed(Event::StepReported { worker: 1, report, planned: Some(PLAN) });
    assert_eq!(
        (run.outcome().failure.as_ref().unwrap().code, run.outcome().exit_code),
        (ErrorCode::NonFinite, exit::FAILED)
    );
}

#[test]
fn messages_are_checked_against_generation_and_membership() {
    let run = Run::training(settings(2));
    let current = run.generation();
    let seat = Seat { rank: 1, world_size: 2, start_step: 0, hand_over: false };
    assert_eq!(run.state.seat(2, Some(current)), Ok(seat));
    let code = |worker, generation| run.state.seat(worker, generation).unwrap_err().code;
    assert_eq!(code(9, Some(current)), ErrorCode::UnknownWorker);
    assert_eq!(code(1, Some(Generation::new(1, 2))), ErrorCode::StaleGeneration);
    assert_eq!(code(1, None), ErrorCode::StaleGeneration);
    assert_eq!(Run::new(settings(1)).state.seat(1, None).unwrap_err().code, ErrorCode::UnknownWorker);
}

#[test]
fn a_worker_that_reports_its_generation_broken_ends_it() {
    let mut run = Run::training(settings(2));
    let generation = run.generation();
    run.feed(Event::GenerationFailed { worker: 1, generation: Generation::new(0, 1), reason: "old".into() });
    assert_eq!(*run.state.phase(), Phase::Training);
    run.feed(Event::GenerationFailed { worker: 1, generation, reason: "a frame was malformed".into() });
    let aborted = |(worker, message)| match message {
        Message::AbortGeneration(abort) => Some((worker, abort.reason.contains("a frame was malformed"))),
        _ => None,
    };
    let aborted: Vec<_> = run.sent().into_iter().filter_map(aborted).collect();
    assert_eq!((aborted, run.state.phase()), (vec![(1, true), (2, true)], &Phase::Gathering));
}

#[test]
fn silence_costs_the_lease() {
    let mut run = Run::training(settings(2));
    run.now = 60;
    run.feed(Event::Heartbeat { worker: 1, heartbeat: heartbeat(1, v1::Phase::Compute) });
    run.now = 99;
    run.feed(Event::Tick);
    assert_eq!(*run.state.phase(), Phase::Training);
    run.now = 100;
    run.feed(Event::Tick);
    assert_eq!(dismissal(&run).0, 2);
    assert!(dismissal(&run).1.message.contains("worker 2 (w1) was silent for 100 ms"), "{}", dismissal(&run).1);
}

/// Ticks every 10 ms up to `until` or another phase, with a heartbeat of every worker each time.
fn beat(run: &mut Run, until: u64, beats: &[(WorkerId, u64, v1::Phase)]) {
    let phase = run.state.phase().clone();
    while run.now < until && *run.state.phase() == phase {
        run.now += 10;
        for (worker, progress, phase) in beats {
            run.feed(Event::Heartbeat { worker: *worker, heartbeat: heartbeat(*progress, *phase) });
        }
        run.feed(Event::Tick);
    }
}

#[test]
fn standing_still_while_computing_is_hanging() {
    let mut run = Run::training(settings(2));
    beat(&mut run, 290, &[(1, 5, v1::Phase::Compute), (2, 5, v1::Phase::Reduce)]);
    assert_eq!(*run.state.phase(), Phase::Training);
    beat(&mut run, 400, &[(1, 5, v1::Phase::Compute), (2, 5, v1::Phase::Reduce)]);
    let (worker, failure) = dismissal(&run);
    assert!(worker == 1 && failure.message.contains("computation of worker 1 (w0) stood still"), "{failure}");
}

#[test]
fn waiting_in_a_collective_for_a_slow_rank_is_not_hanging() {
    let mut run = Run::training(settings(2));
    for progress in 1..100 {
        let until = run.now + 10;
        beat(&mut run, until, &[(1, progress, v1::Phase::Compute), (2, 5, v1::Phase::Reduce)]);
    }
    assert_eq!((run.state.phase(), run.now), (&Phase::Training, 990));
}

#[test]
fn a_collective_in_which_nobody_moves_is_stuck() {
    let mut run = Run::training(settings(2));
    beat(&mut run, 400, &[(1, 5, v1::Phase::Reduce), (2, 5, v1::Phase::Reduce)]);
    let aborted = |(_, message): &(WorkerId, Message)| match message {
        Message::AbortGeneration(abort) => abort.reason.contains("in a collective in which nobody moved"),
        _ => false,
    };
    assert_eq!(run.sent().iter().filter(|sent| aborted(sent)).count(), 2, "nobody knows whose fault it is");
}

#[test]
fn loading_has_its_own_limit() {
    let mut run = Run::new(settings(2));
    let a = run.join("a");
    run.feed(Event::Connected { worker: a });
    beat(&mut run, 990, &[(a, 0, v1::Phase::Loading)]);
    assert_eq!(run.state.members().count(), 1);
    beat(&mut run, 1000, &[(a, 0, v1::Phase::Loading)]);
    assert_eq!(run.state.members().count(), 0);
    assert!(dismissal(&run).1.message.contains("not ready 1000 ms after joining"));
}

#[test]
fn a_join_without_a_session_expires() {
    let mut run = Run::new(settings(1));
    run.join("a");
    run.now = 100;
    run.feed(Event::Tick);
    assert_eq!(run.state.members().count(), 0);
    run.join("b");
}

#[test]
fn a_run_ends_after_its_last_step_is_durable_and_checkpointed() {
    let mut run = Run::training(Settings { total_steps: 2, ..settings(2) });
    run.commit(1);
    run.commit(2);
    assert_eq!(*run.state.phase(), Phase::Training);
    run.feed(Event::CheckpointSaved { step: 2 });
    assert_eq!((run.outcome().exit_code, &run.outcome().failure), (exit::DONE, &None));
    assert_eq!(run.sent().len(), 2);
}

#[test]
fn a_checkpoint_of_an_uncommitted_step_does_not_count() {
    let mut run = Run::training(settings(1));
    run.feed(Event::CheckpointSaved { step: 1 });
    assert_eq!(run.state.checkpoint(), None);
}

#[test]
fn evaluation_follows_training_and_survives_the_loss_of_a_worker() {
    let mut run = Run::training(Settings { total_steps: 1, evaluate: true, ..settings(2) });
    run.commit(1);
    run.feed(Event::CheckpointSaved { step: 1 });
    assert_eq!(*run.state.phase(), Phase::Evaluating);
    assert!(run.sent().iter().all(|(_, m)| matches!(m, Message::Evaluate(_))) && run.sent().len() == 2);
    run.feed(Event::Disconnected { worker: 1 });
    assert!(run.last.contains(&Effect::Requeue { worker: 1 }));
    assert_eq!(*run.state.phase(), Phase::Evaluating);
    let generation = Some(run.generation());
    assert_eq!(run.state.seat(2, generation).map(|seat| (seat.rank, seat.world_size)), Ok((1, 2)));
    run.feed(Event::EvaluationFinished);
    assert_eq!(run.outcome().exit_code, exit::DONE);
}

#[test]
fn when_nobody_is_left_to_evaluate_others_do() {
    let mut run = Run::training(Settings { total_steps: 1, evaluate: true, ..settings(1) });
    run.commit(1);
    run.feed(Event::CheckpointSaved { step: 1 });
    run.feed(Event::Disconnected { worker: 1 });
    assert!(run.last.contains(&Effect::Requeue { worker: 1 }));
    let evaluates = |run: &mut Run| {
        let worker = run.join("a");
        run.ready(worker);
        assert_eq!(*run.state.phase(), Phase::Evaluating);
        let kinds: Vec<_> = run.sent().into_iter().map(|(_, m)| matches!(m, Message::Evaluate(_))).collect();
        assert_eq!(kinds, [false, true], "the generation is announced before its evaluation");
    };
    evaluates(&mut run);
    let resumed = Settings { epoch: 2, total_steps: 1, evaluate: true, head: 1, checkpoint: Some(1), ..settings(1) };
    evaluates(&mut Run::new(resumed));
}

#[test]
fn a_stop_takes_effect_after_a_step_whose_shards_are_not_yet_streamed() {
    let mut run = Run::training(settings(2));
    run.commit(1);
    let streamed = run.state.horizon();
    run.feed(Event::StopRequested { reason: "signal".into() });
    assert_eq!(run.state.end_step(), streamed + 1);
    assert!(run.sent().iter().all(|(_, m)| matches!(m, Message::StopAfter(s) if s.step == streamed + 1)));
    for number in 2..=streamed + 1 {
        run.commit(number);
    }
    assert_eq!(run.state.horizon(), streamed + 1);
    run.feed(Event::CheckpointSaved { step: streamed + 1 });
    let outcome = run.outcome();
    assert_eq!((outcome.exit_code, outcome.failure.as_ref().unwrap().code), (exit::RETRY, ErrorCode::Interrupted));
}

#[test]
fn a_stop_in_the_last_steps_lets_the_run_complete() {
    let mut run = Run::training(Settings { total_steps: 1, ..settings(1) });
    run.feed(Event::StopRequested { reason: "signal".into() });
    run.commit(1);
    run.feed(Event::CheckpointSaved { step: 1 });
    assert_eq!(run.outcome().exit_code, exit::DONE);
}

#[test]
fn a_second_stop_does_not_wait() {
    let mut run = Run::training(settings(2));
    run.feed(Event::StopRequested { reason: "signal".into() });
    run.feed(Event::StopRequested { reason: "signal".into() });
    assert!(run.sent().iter().any(|(_, m)| matches!(m, Message::AbortGeneration(_))));
    assert_eq!(
        (run.outcome().exit_code, run.outcome().failure.as_ref().unwrap().code),
        (exit::FAILED, ErrorCode::Interrupted)
    );
}

#[test]
fn a_stop_before_training_is_immediate_and_nothing_is_lost() {
    let mut run = Run::new(settings(2));
    run.join("a");
    run.feed(Event::StopRequested { reason: "signal".into() });
    assert_eq!(run.outcome().exit_code, exit::RETRY);
    run.feed(Event::Join(join_request("b")));
    assert_eq!(refusal(&run).code, ErrorCode::Interrupted);
}

#[test]
fn a_failing_disk_ends_the_run() {
    let mut run = Run::training(settings(1));
    run.feed(Event::Failed(Failure::new(ErrorCode::StorageFailed, "disk full")));
    assert_eq!((run.outcome().exit_code, run.outcome().reason.as_str()), (exit::FAILED, "disk full"));
}
