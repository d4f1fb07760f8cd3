//! What must hold whatever happens. Asserted after every transition in debug builds, and over whole histories in tests.

use super::{Effect, Phase, State, WorkerId, member::Standing};
use ballast_proto::v1::{Generation, GenerationFormed, coordinator_message::Message};
use std::collections::BTreeSet;

/// Checks one state.
///
/// # Errors
/// The invariant that is broken.
pub fn check(state: &State) -> Result<(), String> {
    let ensure = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    ensure(state.members.len() <= state.settings.workers, "more members than the run has places")?;
    ensure(state.members.census() == state.members.count(), "the members are not as many as are counted")?;
    ensure(state.members.keys().all(|w| *w < state.next_worker), "a member with an id not yet given out")?;
    ensure(state.committed <= state.recorded, "a step is committed before it was recorded")?;
    ensure(state.recorded <= state.settings.total_steps, "a step beyond the end of the run")?;
    ensure(state.checkpoint.is_none_or(|step| step <= state.committed), "a checkpoint of an uncommitted step")?;
    // Steps before the start are recorded, but their records may be on their way.
    let begun = state.generation.as_ref().map_or(state.recorded, |active| active.start_step).max(state.committed);
    ensure(state.horizon <= begun + 1 + state.settings.prefetch_steps, "data is streamed too far ahead")?;
    ensure(state.horizon <= state.boundary().0, "data is streamed beyond the end")?;
    ensure(state.skipped.iter().all(|step| *step <= state.recorded), "a skipped step that is not recorded")?;
    ensure(state.reports.keys().all(|step| *step > state.recorded), "a report of a recorded step is kept")?;
    let recordable = state.recordable();
    ensure(
        state.is_over() || state.members.values().all(|member| !member.idle() || member.step() <= recordable),
        "a worker keeps a state that the ledger cannot be told of",
    )?;
    let working = matches!(state.phase, Phase::Training | Phase::Evaluating);
    ensure(!state.rewinding || !working, "the ledger goes back while workers train")?;
    for member in state.members.values() {
        let Standing::Engaged { generation, applied } = member.standing else { continue };
        ensure(
            generation == Generation::new(state.settings.epoch, state.last_generation),
            "a worker still has a rank in a generation that another one followed",
        )?;
        ensure(applied <= state.horizon.max(state.recorded), "a rank beyond the horizon")?;
    }
    if let Some(active) = &state.generation {
        let distinct: BTreeSet<&WorkerId> = active.ranks.iter().collect();
        ensure(distinct.len() == active.ranks.len(), "a worker holds two ranks")?;
        ensure(active.ranks.is_sorted(), "ranks are not in order of admission")?;
        ensure(
            (1..=state.settings.workers).contains(&active.ranks.len()),
            "a generation of no worker, or of more than the run wants",
        )?;
        ensure(active.id.number == state.last_generation, "the active generation is not the newest")?;
        ensure(active.start_step <= state.recorded, "a generation started from a step that is not recorded")?;
        let engaged = active.ranks.iter().filter_map(|worker| state.members.get(worker)).filter(|m| m.engaged());
        ensure(engaged.clone().all(|m| m.step() >= active.start_step), "a rank before the start")?;
        ensure(
            state.phase != Phase::Training || engaged.into_iter().all(|m| m.step() >= state.recorded),
            "a recorded step that a rank never reported",
        )?;
    }
    match state.phase {
        Phase::Gathering => ensure(state.generation.is_none(), "a generation exists while workers gather"),
        Phase::Training => ensure(
            state.generation.as_ref().is_some_and(|g| g.ranks.iter().all(|w| state.members.contains_key(w))),
            "a generation trains with a lost rank",
        ),
        Phase::Evaluating => {
            ensure(state.committed == state.settings.total_steps, "evaluation before the end of training")
        }
        Phase::Over(_) => Ok(()),
    }
}

/// Checks a history: the effects of one transition after another.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    known: BTreeSet<WorkerId>,
    generation: Option<Generation>,
    ranks: BTreeSet<(Generation, u32)>,
    /// Steps that are recorded and not void, from the first one of this history on.
    recorded: Option<u64>,
    horizon: u64,
    finished: bool,
}

impl Trace {
    /// Takes the effects of the next transition and the state after it.
    ///
    /// # Errors
    /// The invariant that the history breaks.
    pub fn observe(&mut self, state: &State, effects: &[Effect]) -> Result<(), String> {
        let mut begins_anew = false;
        for effect in effects {
            begins_anew |= match effect {
                Effect::Rewind { .. } => true,
                Effect::Send { message, .. } => matches!(message, Message::GenerationFormed(_)),
                _ => false,
            };
            self.effect(state, effect)?;
        }
        if state.horizon() < self.horizon && !begins_anew {
            return Err("the horizon fell back".into());
        }
        self.horizon = state.horizon();
        Ok(())
    }

    fn effect(&mut self, state: &State, effect: &Effect) -> Result<(), String> {
        match effect {
            Effect::Persist(_) | Effect::Rewind { .. } | Effect::Evaluate | Effect::Admit { .. } if self.finished => {
                Err("work after the end".into())
            }
            Effect::Admit { worker } if !self.known.insert(*worker) => Err("a worker id was given out twice".into()),
            Effect::Dismiss { worker, .. } if !self.known.contains(worker) => Err("a stranger was dismissed".into()),
            Effect::Send { worker, .. } if !self.known.contains(worker) => Err("a message to a stranger".into()),
            Effect::Send { message: Message::GenerationFormed(formed), .. } => self.formed(state, formed),
            Effect::Persist(commit) => {
                let previous = self.recorded.replace(commit.step).unwrap_or(state.start_step());
                if commit.step != previous + 1 {
                    return Err(format!("step {} was recorded after step {previous}", commit.step));
                }
                if Some(commit.generation) > self.generation.max(Some(Generation::new(state.settings.epoch, 0))) {
                    return Err("a step was recorded for a generation that was not formed".into());
                }
                Ok(())
            }
            Effect::Rewind { to } => {
                let head = self.recorded.replace(*to).unwrap_or(state.start_step());
                if *to >= head || state.checkpoint.is_some_and(|step| step > *to) {
                    return Err(format!(
                        "went back from step {head} to {to}, with a checkpoint {:?}",
                        state.checkpoint
                    ));
                }
                Ok(())
            }
            Effect::Finish(_) if std::mem::replace(&mut self.finished, true) => Err("the run ended twice".into()),
            _ => Ok(()),
        }
    }

    fn formed(&mut self, state: &State, formed: &GenerationFormed) -> Result<(), String> {
        let Some(generation) = formed.generation else { return Err("a generation without a number".into()) };
        if self.generation.is_some_and(|newest| generation < newest) {
            return Err("an older generation was announced after a newer one".into());
        }
        if self.finished {
            return Err("a generation formed after the end".into());
        }
        if formed.start_step != self.recorded.unwrap_or(state.start_step()) {
            return Err(format!("a generation starts after step {}, which is not the newest", formed.start_step));
        }
        self.generation = Some(generation);
        if self.ranks.insert((generation, formed.rank)) { Ok(()) } else { Err("a rank was given out twice".into()) }
    }
}
