//! What the worker does about each thing it hears: decisions without clock and I/O.
//!
//! A worker loads, reports ready, and then lives from generation to generation. Only messages of the generation it is in
//! count; those of earlier ones were sent before the coordinator knew better, and are ignored.

use ballast_proto::v1::worker_message::Message as Say;
use ballast_proto::v1::{
    CommunicatorId, CoordinatorMessage, Draining, Generation, GenerationFailed, GenerationFormed, Leaving, Ready,
    StepReport, coordinator_message::Message,
};
use ballast_proto::{CommunicatorSecret, ErrorCode, Failure, exit};

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The coordinator said something.
    Heard(CoordinatorMessage),
    /// The session with the coordinator broke.
    Lost(Failure),
    /// The compute thread can enter a generation.
    Idle(Ready),
    /// This rank made the secret by which the ranks of its generation meet.
    CommunicatorMade(CommunicatorId),
    /// A step was applied.
    Stepped(StepReport),
    /// The generation's collective broke.
    GenerationBroken { generation: Generation, reason: String },
    /// The worker itself cannot go on.
    Failed(Failure),
    /// The process was asked to stop.
    Terminated(&'static str),
}

/// Something to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Tell the coordinator.
    Say(Say),
    /// Begin a generation.
    Enter(GenerationFormed),
    /// Meet the other ranks by this secret.
    Meet(CommunicatorSecret),
    /// Give the current generation up at once.
    Abort { reason: String },
    /// Let this step of the current generation be the last.
    StopAfter(u64),
    /// Pull evaluation tasks until there are none.
    Evaluate(Generation),
    /// Nothing but a line in the log.
    Ignore(String),
    /// The session is over.
    End(Ending),
}

/// How a session ends.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// With an exit code, in peace.
    Exit { code: u8, reason: String },
    /// With an error.
    Failed(Failure),
    /// Because the coordinator is gone, or believes that this worker is; another session can follow.
    Lost(Failure),
}

impl PartialEq for Ending {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exit { code: a, reason: b }, Self::Exit { code: c, reason: d }) => (a, b) == (c, d),
            (Self::Failed(a), Self::Failed(b)) | (Self::Lost(a), Self::Lost(b)) => {
                (a.code, &a.message) == (b.code, &b.message)
            }
            _ => false,
        }
    }
}

/// Where the worker stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Conversation {
    loaded: bool,
    /// Newest generation entered in this session.
    newest: Option<Generation>,
    /// Whether that generation was given up.
    aborted: bool,
    /// Whether the coordinator was told that this worker was asked to stop.
    draining: bool,
}

impl Conversation {
    /// Decides what follows from `event`.
    pub(super) fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Heard(message) => self.heard(message),
            Event::Lost(failure) => {
                let reason = format!("the coordinator is gone: {failure}");
                let passing = failure.code.exit_code() == exit::RETRY && !self.draining;
                self.end(reason, if passing { Ending::Lost(failure) } else { Ending::Failed(failure) })
            }
            // Another session's generation is none of this one's business.
            Event::Idle(ready) if ready.left.is_some() && ready.left != self.newest => {
                vec![stale("return", ready.left)]
            }
            Event::Idle(ready) => {
                self.loaded = true;
                vec![Action::Say(Say::Ready(ready))]
            }
            Event::CommunicatorMade(id) if self.is_current(id.generation) => {
                vec![Action::Say(Say::CommunicatorId(id))]
            }
            Event::CommunicatorMade(id) => vec![stale("communicator", id.generation)],
            // Also when the generation was given up meanwhile: the state is another one now.
            Event::Stepped(report) if report.generation.is_some() && report.generation == self.newest => {
                vec![Action::Say(Say::StepReport(report))]
            }
            Event::Stepped(report) => vec![stale("report of a step", report.generation)],
            Event::GenerationBroken { generation, reason } if self.is_current(Some(generation)) => {
                let failed = GenerationFailed { generation: Some(generation), reason };
                vec![Action::Say(Say::GenerationFailed(failed))]
            }
            Event::GenerationBroken { generation, .. } => vec![stale("failure", Some(generation))],
            Event::Failed(failure) => {
                let leaving = Leaving { error_code: failure.code.to_string(), reason: failure.message.clone() };
                let mut actions = vec![Action::Say(Say::Leaving(leaving))];
                actions.extend(self.end(failure.message.clone(), Ending::Failed(failure)));
                actions
            }
            Event::Terminated(signal) if !self.draining => {
                self.draining = true;
                vec![Action::Say(Say::Draining(Draining { reason: format!("the worker received {signal}") }))]
            }
            // Once more: at once.
            Event::Terminated(signal) => {
                let reason = format!("the worker received {signal}");
                let leaving = Leaving { error_code: String::new(), reason: reason.clone() };
                let mut actions = vec![Action::Say(Say::Leaving(leaving))];
                actions.extend(self.end(reason.clone(), Ending::Exit { code: exit::RETRY, reason }));
                actions
            }
        }
    }

    fn heard(&mut self, message: CoordinatorMessage) -> Vec<Action> {
        match message.message {
            Some(Message::GenerationFormed(formed)) => self.formed(formed),
            Some(Message::CommunicatorId(id)) if self.is_current(id.generation) => vec![Action::Meet(id.into())],
            Some(Message::CommunicatorId(id)) => vec![stale("communicator", id.generation)],
            Some(Message::AbortGeneration(abort)) if self.is_current(abort.generation) => {
                self.aborted = true;
                vec![Action::Abort { reason: abort.reason }]
            }
            Some(Message::StopAfter(stop)) if self.is_current(stop.generation) => vec![Action::StopAfter(stop.step)],
            Some(Message::Evaluate(phase)) if self.is_current(phase.generation) => {
                phase.generation.map(Action::Evaluate).into_iter().collect()
            }
            Some(Message::AbortGeneration(abort)) => vec![stale("order to abort", abort.generation)],
            Some(Message::StopAfter(stop)) => vec![stale("order to stop", stop.generation)],
            Some(Message::Evaluate(phase)) => vec![stale("order to evaluate", phase.generation)],
            Some(Message::Goodbye(goodbye)) if !goodbye.error_code.is_empty() => {
                let code = goodbye.error_code.parse().unwrap_or(ErrorCode::Interrupted);
                self.end(goodbye.reason.clone(), Ending::Failed(Failure::new(code, goodbye.reason)))
            }
            Some(Message::Goodbye(goodbye)) => match u8::try_from(goodbye.exit_code) {
                Ok(code) => self.end(goodbye.reason.clone(), Ending::Exit { code, reason: goodbye.reason }),
                Err(_) => self.breach(format!("goodbye with exit code {}", goodbye.exit_code)),
            },
            None => self.breach("a message of an unknown kind: is it of another version?".into()),
        }
    }

    fn formed(&mut self, formed: GenerationFormed) -> Vec<Action> {
        let Some(generation) = formed.generation else {
            return self.breach("a generation without a number".into());
        };
        if !self.loaded {
            return self.breach(format!("generation {generation} formed before this worker was ready"));
        }
        if self.newest.is_some_and(|newest| generation <= newest) {
            return vec![stale("forming", Some(generation))];
        }
        if formed.rank >= formed.world_size {
            return self.breach(format!("rank {} in a world of {}", formed.rank, formed.world_size));
        }
        let mut actions = Vec::new();
        if self.current().is_some() {
            actions.push(Action::Abort { reason: format!("generation {generation} takes its place") });
        }
        self.newest = Some(generation);
        self.aborted = false;
        actions.push(Action::Enter(formed));
        actions
    }

    /// The coordinator broke the protocol.
    fn breach(&mut self, what: String) -> Vec<Action> {
        self.on(Event::Failed(Failure::new(ErrorCode::BadMessage, format!("the coordinator sent {what}"))))
    }

    fn end(&mut self, reason: String, ending: Ending) -> Vec<Action> {
        let running = self.current().map(|_| Action::Abort { reason });
        self.aborted = true;
        running.into_iter().chain([Action::End(ending)]).collect()
    }

    fn current(&self) -> Option<Generation> {
        self.newest.filter(|_| !self.aborted)
    }

    fn is_current(&self, generation: Option<Generation>) -> bool {
        generation.is_some() && generation == self.current()
    }
}

fn stale(what: &str, generation: Option<Generation>) -> Action {
    let generation = generation.map_or_else(|| "none".to_owned(), |g| g.to_string());
    Action::Ignore(format!("ignored a stale message: {what}, generation {generation}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_proto::v1::{AbortGeneration, EvaluatePhase, Goodbye, StopAfter};
    use bytes::Bytes;

    const G1: Generation = Generation { epoch: 1, number: 1 };
    const G2: Generation = Generation { epoch: 1, number: 2 };

    fn hear(conversation: &mut Conversation, message: Message) -> Vec<Action> {
        conversation.on(Event::Heard(CoordinatorMessage { message: Some(message) }))
    }

    fn formed(generation: Generation) -> GenerationFormed {
        GenerationFormed { generation: Some(generation), rank: 1, world_size: 2, ..Default::default() }
    }

    fn abort(generation: Generation) -> Message {
        Message::AbortGeneration(AbortGeneration { generation: Some(generation), reason: "worker 2 is gone".into() })
    }

    fn in_generation(generation: Generation) -> Conversation {
        let mut conversation = Conversation::default();
        conversation.on(Event::Idle(Ready::default()));
        let entered = hear(&mut conversation, Message::GenerationFormed(formed(generation)));
        assert_eq!(entered, [Action::Enter(formed(generation))]);
        conversation
    }

    fn ignored(actions: &[Action]) -> bool {
        matches!(actions, [Action::Ignore(_)])
    }

    fn breached(actions: &[Action]) -> bool {
        matches!(actions.last(), Some(Action::End(Ending::Failed(f))) if f.code == ErrorCode::BadMessage)
            && matches!(actions.first(), Some(Action::Say(Say::Leaving(l))) if l.error_code == "B4011")
    }

    #[test]
    fn messages_of_the_current_generation_count() {
        let mut conversation = in_generation(G2);
        let stop = Message::StopAfter(StopAfter { generation: Some(G2), step: 9 });
        assert_eq!(hear(&mut conversation, stop), [Action::StopAfter(9)]);
        let evaluate = Message::Evaluate(EvaluatePhase { generation: Some(G2) });
        assert_eq!(hear(&mut conversation, evaluate), [Action::Evaluate(G2)]);
        let id = CommunicatorId { generation: Some(G2), id: Bytes::from_static(b"secret") };
        assert_eq!(hear(&mut conversation, Message::CommunicatorId(id.clone())), [Action::Meet(id.clone().into())]);
        let made = conversation.on(Event::CommunicatorMade(id.clone()));
        assert_eq!(made, [Action::Say(Say::CommunicatorId(id))]);
        let report = StepReport { generation: Some(G2), step: 1, ..Default::default() };
        assert_eq!(conversation.on(Event::Stepped(report.clone())), [Action::Say(Say::StepReport(report))]);
        assert_eq!(hear(&mut conversation, abort(G2)), [Action::Abort { reason: "worker 2 is gone".into() }]);
    }

    #[test]
    fn no_event_and_no_action_shows_a_communicators_secret() {
        let id = CommunicatorId { generation: Some(G2), id: Bytes::from_static(&[b'S'; 128]) };
        let mut conversation = in_generation(G2);
        let message = CoordinatorMessage { message: Some(Message::CommunicatorId(id.clone())) };
        for event in [Event::Heard(message), Event::CommunicatorMade(id)] {
            let shown = format!("{event:?} {:?}", conversation.on(event.clone()));
            assert!(shown.contains("Communicator") && !shown.contains("SS") && !shown.contains("83"), "{shown}");
        }
    }

    #[test]
    fn messages_of_other_generations_are_ignored() {
        for other in [Some(G1), Some(Generation::new(2, 2)), None] {
            let mut conversation = in_generation(G2);
            let messages = [
                Message::AbortGeneration(AbortGeneration { generation: other, reason: String::new() }),
                Message::StopAfter(StopAfter { generation: other, step: 9 }),
                Message::Evaluate(EvaluatePhase { generation: other }),
                Message::CommunicatorId(CommunicatorId { generation: other, id: Bytes::new() }),
            ];
            for message in messages {
                assert!(ignored(&hear(&mut conversation, message)));
            }
            let report = StepReport { generation: other, ..Default::default() };
            assert!(ignored(&conversation.on(Event::Stepped(report))));
            let id = CommunicatorId { generation: other, id: Bytes::new() };
            assert!(ignored(&conversation.on(Event::CommunicatorMade(id))));
        }
        let mut conversation = in_generation(G2);
        for old in [G1, G2] {
            assert!(ignored(&hear(&mut conversation, Message::GenerationFormed(formed(old)))));
        }
    }

    #[test]
    fn after_an_abort_only_what_it_has_applied_counts_of_a_generation() {
        let mut conversation = in_generation(G1);
        hear(&mut conversation, abort(G1));
        assert!(ignored(&hear(&mut conversation, abort(G1))));
        let report = StepReport { generation: Some(G1), ..Default::default() };
        assert_eq!(conversation.on(Event::Stepped(report.clone())), [Action::Say(Say::StepReport(report))]);
        let back = Ready { left: Some(G1), ..Default::default() };
        assert_eq!(conversation.on(Event::Idle(back.clone())), [Action::Say(Say::Ready(back))]);
        let of_another_session = Ready { left: Some(G2), ..Default::default() };
        assert!(ignored(&conversation.on(Event::Idle(of_another_session))));
        let broken = Event::GenerationBroken { generation: G1, reason: "aborted".into() };
        assert!(ignored(&conversation.on(broken)));
        let next = hear(&mut conversation, Message::GenerationFormed(formed(G2)));
        assert_eq!(next, [Action::Enter(formed(G2))]);
    }

    #[test]
    fn a_new_generation_ends_the_one_before() {
        let mut conversation = in_generation(G1);
        let actions = hear(&mut conversation, Message::GenerationFormed(formed(G2)));
        assert!(matches!(&actions[..], [Action::Abort { .. }, Action::Enter(f)] if *f == formed(G2)));
    }

    #[test]
    fn a_broken_collective_is_reported_and_the_worker_waits() {
        let mut conversation = in_generation(G1);
        let actions = conversation.on(Event::GenerationBroken { generation: G1, reason: "rank 0 is gone".into() });
        assert!(matches!(&actions[..], [Action::Say(Say::GenerationFailed(f))] if f.reason == "rank 0 is gone"));
    }

    #[test]
    fn breaches_of_the_protocol_end_the_session() {
        let mut early = Conversation::default();
        assert!(breached(&hear(&mut early, Message::GenerationFormed(formed(G1)))));
        let senseless = GenerationFormed { rank: 2, ..formed(G2) };
        assert!(breached(&hear(&mut in_generation(G1), Message::GenerationFormed(senseless))));
        let unnumbered = GenerationFormed { generation: None, ..formed(G2) };
        assert!(breached(&hear(&mut in_generation(G1), Message::GenerationFormed(unnumbered))));
        assert!(breached(&in_generation(G1).on(Event::Heard(CoordinatorMessage { message: None }))));
        let goodbye = Message::Goodbye(Goodbye { exit_code: 256, ..Goodbye::default() });
        assert!(breached(&hear(&mut in_generation(G1), goodbye)));
    }

    #[test]
    fn endings() {
        let goodbye = Message::Goodbye(Goodbye { reason: "done".into(), ..Goodbye::default() });
        let peace = Action::End(Ending::Exit { code: 0, reason: "done".into() });
        assert_eq!(hear(&mut Conversation::default(), goodbye.clone()), vec![peace.clone()]);
        let running = hear(&mut in_generation(G1), goodbye);
        assert_eq!(running, [Action::Abort { reason: "done".into() }, peace]);

        let (reason, error_code) = ("too slow".to_owned(), "B4018".to_owned());
        let unwanted = Message::Goodbye(Goodbye { reason, exit_code: 75, error_code });
        let failed = Ending::Failed(Failure::new(ErrorCode::TooSlow, "too slow"));
        assert_eq!(hear(&mut Conversation::default(), unwanted), [Action::End(failed)], "it does not join again");

        let lost = Failure::new(ErrorCode::CoordinatorUnreachable, "connection reset");
        let actions = in_generation(G1).on(Event::Lost(lost.clone()));
        assert!(matches!(&actions[..], [Action::Abort { .. }, Action::End(e)] if *e == Ending::Lost(lost)));
        let refused = Failure::new(ErrorCode::NumericsMismatch, "other bits");
        let actions = in_generation(G1).on(Event::Lost(refused.clone()));
        assert!(matches!(&actions[..], [Action::Abort { .. }, Action::End(e)] if *e == Ending::Failed(refused)));

        let mut leaving = in_generation(G1);
        let actions = leaving.on(Event::Terminated("SIGTERM"));
        assert!(matches!(&actions[..], [Action::Say(Say::Draining(d))] if d.reason.contains("SIGTERM")));
        let mut lonely = leaving.clone();
        let actions = lonely.on(Event::Lost(Failure::new(ErrorCode::CoordinatorUnreachable, "connection reset")));
        assert!(matches!(&actions[..], [Action::Abort { .. }, Action::End(Ending::Failed(_))]), "nobody waits for it");
        let actions = leaving.on(Event::Terminated("SIGTERM"));
        assert!(matches!(
            &actions[..],
            [Action::Say(Say::Leaving(leaving)), Action::Abort { .. }, Action::End(Ending::Exit { code: 75, .. })]
                if leaving.error_code.is_empty()
        ));

        let failure = Failure::new(ErrorCode::NonFinite, "step 3");
        let actions = in_generation(G1).on(Event::Failed(failure.clone()));
        assert!(matches!(
            &actions[..],
            [Action::Say(Say::Leaving(leaving)), Action::Abort { .. }, Action::End(e)]
                if leaving.error_code == "B6001" && *e == Ending::Failed(failure)
        ));
    }
}
