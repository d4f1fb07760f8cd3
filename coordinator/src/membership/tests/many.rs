//! What is true of many workers: no message and no line is as long as they are many, and nobody is told what only others need.

use super::*;

const MANY: usize = 40;

#[test]
fn ranks_are_told_of_their_neighbours_and_of_the_first_alone() {
    let mut run = Run::new(settings(MANY));
    let address = |n: usize| format!("host-{n}:7");
    let join = |n: usize| JoinRequest { ring_address: address(n), ..join_request(&format!("w{n}")) };
    for n in 0..MANY {
        run.feed(Event::Join(join(n)));
    }
    let ids: Vec<_> = run.state.members().map(|member| member.worker).collect();
    ids.into_iter().for_each(|worker| run.ready(worker));
    let formed = run.formed();
    assert_eq!(formed.len(), MANY);
    for (rank, (_, formed)) in formed.into_iter().enumerate() {
        assert_eq!((formed.rank as usize, formed.world_size as usize), (rank, MANY));
        let neighbours = (address((rank + 1) % MANY), address((rank + MANY - 1) % MANY));
        assert_eq!((formed.next_address, formed.previous_address), neighbours);
        assert_eq!(formed.first_address, address(0));
    }
}

#[test]
fn whoever_comes_back_is_no_news_until_few_are_missing() {
    let mut run = Run::training(settings(MANY));
    let (left, ids) = (run.generation(), run.state.members().map(|member| member.worker).collect::<Vec<_>>());
    run.feed(Event::Disconnected { worker: ids[0] });
    assert_eq!(run.state.waiting(), "more than 4 workers to come back from the last generation");
    let mut lines = 0;
    for worker in &ids[1..MANY - 1] {
        run.back(*worker, left, 0);
        lines += run.last.iter().filter(|e| matches!(e, Effect::Note { .. })).count();
    }
    let last = ids[MANY - 1];
    let expected = format!("worker {last} (w{}) to come back from the last generation", MANY - 1);
    assert_eq!((run.state.waiting(), lines), (&*expected, 4), "one line for each number of them that is small");
    run.back(last, left, 0);
    assert_eq!(run.formed().len(), MANY - 1);
}

#[test]
fn who_stands_apart_from_many_is_named() {
    let mut run = Run::training(settings(MANY));
    let ids: Vec<_> = run.state.members().map(|member| member.worker).collect();
    for (n, worker) in ids.iter().enumerate() {
        run.report(*worker, 1, if n % 20 == 7 { 2 } else { 1 });
    }
    let message = &run.outcome().failure.as_ref().unwrap().message;
    let apart = format!("the training state of worker {} (w7) and worker {} (w27) differs", ids[7], ids[27]);
    assert!(message.contains(&apart), "{message}");
}
