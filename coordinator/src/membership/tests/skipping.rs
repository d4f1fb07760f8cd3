//! Steps that go by without an update.

use super::*;
use ballast_proto::{ErrorCode, exit, v1::NonFinite};

fn skipping(max_skipped: u64) -> Settings {
    Settings { max_skipped: Some(max_skipped), ..settings(2) }
}

fn gradient(micro_batch: u32) -> NonFinite {
    NonFinite { micro_batch, loss: false, gradient: true }
}

/// A report of a skipped step: the state is that of the step before.
fn skipped(run: &Run, step: u64, not_finite: &[NonFinite]) -> StepReport {
    StepReport { not_finite: not_finite.to_vec(), grad_norm: 0.0, ..report(run.generation(), step, step as u8 - 1) }
}

fn tell(run: &mut Run, worker: WorkerId, report: StepReport) {
    run.feed(Event::StepReported { worker, report, planned: Some(PLAN) });
}

/// All ranks skip a step, and it becomes durable.
fn skip(run: &mut Run, step: u64) {
    let workers: Vec<_> = run.state.members().filter(|m| m.rank.is_some()).map(|m| m.worker).collect();
    workers.into_iter().for_each(|worker| tell(run, worker, skipped(run, step, &[gradient(1)])));
    assert!(run.recorded(step), "{:?}", run.last);
    run.feed(Event::Committed { step });
}

fn persisted(run: &Run) -> &Commit {
    let persisted = run.last.iter().find_map(|e| if let Effect::Persist(commit) = e { Some(commit) } else { None });
    persisted.unwrap()
}

#[test]
fn a_skipped_step_is_recorded_with_its_micro_batches() {
    let mut run = Run::training(skipping(8));
    let named = [gradient(1), NonFinite { micro_batch: 3, loss: true, gradient: true }];
    for worker in [1, 2] {
        let report = StepReport { loss_tokens: PLAN.loss_tokens - 2, ..skipped(&run, 1, &named) };
        tell(&mut run, worker, report);
    }
    assert_eq!((persisted(&run).step, &*persisted(&run).not_finite), (1, &named[..]));
    run.feed(Event::Committed { step: 1 });
    assert_eq!((run.state.committed(), run.state.phase()), (1, &Phase::Training));
}

/// Every rank knows all of it, so the record does not suffer from the loss of one.
#[test]
fn a_survivors_word_is_enough() {
    let mut run = Run::training(skipping(8));
    let generation = run.generation();
    let report = skipped(&run, 1, &[gradient(0)]);
    tell(&mut run, 1, report.clone());
    run.feed(Event::Disconnected { worker: 2 });
    let held = HeldState { step: 1, state_sha256: report.state_sha256.clone(), reports: vec![report] };
    let ready = Ready { held: Some(held), left: Some(generation), ..ready(fingerprint()) };
    let known = run.known(1);
    run.feed(Event::Ready { worker: 1, ready, known });
    let told = run.last.iter().find(|e| matches!(e, Effect::Persist(commit) if commit.not_finite == [gradient(0)]));
    assert!(told.is_some(), "{:?}", run.last);
}

#[test]
fn what_no_rank_skips_is_a_breach() {
    type Forge = fn(StepReport) -> StepReport;
    let forged: [(&str, Forge); 6] = [
        ("a micro-batch that there is not", |r| StepReport { not_finite: vec![gradient(4)], ..r }),
        ("one twice", |r| StepReport { not_finite: vec![gradient(1), gradient(1)], ..r }),
        ("out of order", |r| StepReport { not_finite: vec![gradient(2), gradient(1)], ..r }),
        ("nothing wrong with it", |r| StepReport { not_finite: vec![NonFinite::default()], ..r }),
        ("fewer tokens, all of them finite", |r| StepReport { loss_tokens: r.loss_tokens - 1, ..r }),
        ("all tokens, some of them not finite", |r| StepReport {
            not_finite: vec![NonFinite { loss: true, ..gradient(1) }],
            ..r
        }),
    ];
    for (what, forge) in forged {
        let mut run = Run::training(skipping(8));
        let report = forge(skipped(&run, 1, &[gradient(1)]));
        tell(&mut run, 1, report);
        assert!(!run.state.is_member(1), "{what}");
    }
    let mut run = Run::training(settings(2));
    let report = skipped(&run, 1, &[gradient(1)]);
    tell(&mut run, 1, report);
    assert!(!run.state.is_member(1), "train.on_nonfinite is \"stop\"");
}

#[test]
fn ranks_that_name_others_have_diverged() {
    let mut run = Run::training(skipping(8));
    let reports = [skipped(&run, 1, &[gradient(1)]), skipped(&run, 1, &[gradient(2)])];
    for (worker, report) in [1, 2].into_iter().zip(reports) {
        tell(&mut run, worker, report);
    }
    assert_eq!(run.outcome().failure.as_ref().unwrap().code, ErrorCode::StateDiverged);
}

#[test]
fn so_many_in_succession_end_the_run_once_they_are_recorded() {
    let mut run = Run::training(skipping(2));
    skip(&mut run, 1);
    run.commit(2);
    skip(&mut run, 3);
    assert_eq!(*run.state.phase(), Phase::Training, "one at a time");
    for worker in [1, 2] {
        let report = skipped(&run, 4, &[gradient(1)]);
        tell(&mut run, worker, report);
    }
    assert!(run.recorded(4));
    let failure = run.outcome().failure.clone().unwrap();
    assert_eq!((failure.code, run.outcome().exit_code), (ErrorCode::NonFinite, exit::FAILED));
    assert!(failure.message.contains("steps 3 to 4"), "{failure}");
}

#[test]
fn those_before_a_restart_count_and_voided_ones_do_not() {
    let earlier = Settings { head: 3, checkpoint: Some(3), skipped: BTreeSet::from([2, 3]), ..skipping(3) };
    let mut run = Run::training(earlier.clone());
    let report = skipped(&run, 4, &[gradient(1)]);
    tell(&mut run, 1, report.clone());
    tell(&mut run, 2, report);
    assert!(run.outcome().reason.contains("steps 2 to 4"), "{}", run.outcome().reason);

    // Nobody holds step 3: it is done again, and does not count twice.
    let mut run = Run::new(Settings { checkpoint: Some(2), ..earlier });
    let workers = [run.join("a"), run.join("b")];
    workers.into_iter().for_each(|worker| run.ready(worker));
    run.feed(Event::Rewound { to: 2 });
    assert_eq!(*run.state.phase(), Phase::Training);
    skip(&mut run, 3);
    assert_eq!(*run.state.phase(), Phase::Training, "two in succession");
}
