//! How ranks meet, and who learns the secret.

use super::*;
use ballast_proto::ErrorCode;
use ballast_proto::v1::Transport;

fn on_cuda(settings: Settings) -> Run {
    let mut run = Run::new(settings);
    run.fingerprint.backend = "cuda".into();
    run.trained()
}

fn transport(run: &Run) -> Transport {
    let Some((_, Message::GenerationFormed(formed))) = run.sent().into_iter().next() else { panic!("no generation") };
    formed.transport()
}

#[test]
fn cuda_devices_meet_over_nccl_unless_the_run_says_otherwise() {
    assert_eq!(transport(&Run::training(settings(2))), Transport::Tcp);
    assert_eq!(transport(&on_cuda(settings(2))), Transport::Nccl);
    assert_eq!(transport(&on_cuda(Settings { collective: Collective::Tcp, ..settings(2) })), Transport::Tcp);
}

#[test]
fn the_secret_goes_from_rank_0_to_all_others_and_is_not_kept() {
    let mut run = on_cuda(settings(3));
    let id = communicator(run.generation());
    run.feed(Event::CommunicatorMade { worker: 1, id: id.clone() });
    assert_eq!(run.sent(), [2, 3].map(|worker| (worker, Message::CommunicatorId(id.clone()))));
    assert!(!format!("{:?}", run.state).contains("5, 5"));
}

#[test]
fn a_secret_nobody_asked_for_loses_its_sender_its_place() {
    let short = |generation| CommunicatorId { id: vec![5; 127].into(), ..communicator(generation) };
    let newer = |generation: Generation| communicator(Generation { number: generation.number + 1, ..generation });
    type Made = fn(Generation) -> CommunicatorId;
    let cases: [(&str, Run, WorkerId, Made); 4] = [
        ("of a generation that meets over TCP", Run::training(settings(2)), 1, communicator),
        ("from another rank", on_cuda(settings(2)), 2, communicator),
        ("of the wrong length", on_cuda(settings(2)), 1, short),
        ("of a generation to come", on_cuda(settings(2)), 1, newer),
    ];
    for (what, mut run, worker, id) in cases {
        let id = id(run.generation());
        run.feed(Event::CommunicatorMade { worker, id });
        let dismissed = |e: &Effect| matches!(e, Effect::Dismiss { worker: w, failure } if *w == worker && failure.code == ErrorCode::BadMessage);
        assert!(run.last.iter().any(dismissed), "{what}: {:?}", run.last);
        let relayed = run.sent().iter().any(|(_, message)| matches!(message, Message::CommunicatorId(_)));
        assert!(!relayed, "{what}");
    }
}

#[test]
fn a_second_secret_is_refused_and_an_old_one_ignored() {
    let mut run = on_cuda(settings(2));
    let old = Generation::new(0, 1);
    run.feed(Event::CommunicatorMade { worker: 1, id: communicator(old) });
    assert!(run.sent().is_empty() && *run.state.phase() == Phase::Training);
    let id = communicator(run.generation());
    run.feed(Event::CommunicatorMade { worker: 1, id: id.clone() });
    run.feed(Event::CommunicatorMade { worker: 1, id });
    assert!(run.last.iter().any(|e| matches!(e, Effect::Dismiss { worker: 1, .. })), "{:?}", run.last);
}
