//! The story of a run, from its ledger alone.

use super::{
    Record, StepRecord, Tail, Verified,
    story::{Chapter, Happening},
    verify,
};
use serde::Serialize;
use std::collections::BTreeMap;
use thiserror::Error;

/// What a ledger tells.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Audit {
    /// Samples of the prepared set.
    pub samples: u64,
    /// The proof.
    pub verified: Verified,
    /// Redone steps that were trained by the same recipe before, all of which led to the same state.
    pub reproduced: u64,
    /// SHA-256 (hex) of the training state after the newest step.
    pub state_sha256: Option<String>,
    /// One for each coordinator.
    pub chapters: Vec<Chapter>,
    /// Generations that had to follow another one.
    pub changes: u64,
    /// Seconds that faults, restarts and changes of the membership cost: for each generation after the first, from the commit
    /// of the newest step that it kept (or the run's start) to its first own, less a usual step; less, too, the time between
    /// the end of one coordinator and the start of the next, when nobody wanted it to run. A coordinator after one that was
    /// done costs nothing. Steps that were recorded at once, just before the change, are those whose reports survivors brought: the
    /// time is taken from before them.
    pub lost_seconds: f64,
    /// Whether a line without an end follows the last record.
    pub unfinished_line: bool,
}

/// Why a ledger proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unproven {
    /// Its records are damaged, or contradict the promise; in words.
    #[error("{0}")]
    Broken(String),
    /// It is intact, but of a version that did not record how many samples there are.
    #[error(
        "it was begun by a version that did not record how many samples there are: nothing is wrong with it, but nothing is proven"
    )]
    Older,
}

impl From<String> for Unproven {
    fn from(problem: String) -> Self {
        Self::Broken(problem)
    }
}

/// Checks a ledger's records and tells their story.
///
/// # Errors
/// What makes them no proof: see [`verify`]; and a redone step that led to another state than its voided record.
pub fn audit(records: &[Record], tail: Tail) -> Result<Audit, Unproven> {
    if tail == Tail::Damaged {
        return Err("the checksum of its last line does not match".to_owned().into());
    }
    let samples = records.iter().rev().find_map(|record| match record {
        Record::Start { samples, .. } => Some(*samples),
        _ => None,
    });
    let samples = samples.ok_or_else(|| "no coordinator has begun".to_owned())?;
    if samples == 0 {
        return Err(Unproven::Older);
    }
    let verified = verify(records, samples)?;
    let mut reader = Reader::default();
    records.iter().try_for_each(|record| reader.read(record))?;
    let Reader { chapters, lineage, reproduced, gaps, .. } = reader;
    let usual = median_step(&lineage);
    Ok(Audit {
        samples,
        verified,
        reproduced,
        state_sha256: lineage.last_key_value().map(|(_, (step, _))| step.state_sha256.clone()),
        changes: gaps.len() as u64,
        // The sum of nothing is -0.
        lost_seconds: 0.0 + gaps.iter().map(|gap| gap.lost(usual)).sum::<f64>(),
        unfinished_line: tail == Tail::Unfinished,
        chapters,
    })
}

/// Intervals before a change that are looked at: more steps are hardly ever streamed ahead.
const LOOKED_BACK: usize = 16;

/// What lies around a change of the generation.
struct Gap {
    /// Seconds from what the new one kept to its first step.
    seconds: f64,
    /// Seconds between the steps of the one before, newest first.
    before: Vec<f64>,
}

impl Gap {
    /// Seconds that the change cost, where a step takes `usual` ones.
    fn lost(&self, usual: f64) -> f64 {
        let at_once = self.before.iter().take_while(|interval| **interval < usual / 2.0).count();
        let stall = if at_once > 0 { at_once + 1 } else { 0 };
        let earlier: f64 = self.before.iter().take(stall).map(|interval| interval - usual).sum();
        (self.seconds - usual + earlier.max(0.0)).max(0.0)
    }
}

/// Seconds between commits of neighbouring steps of one generation.
fn median_step(lineage: &BTreeMap<u64, (&StepRecord, &str)>) -> f64 {
    let steps: Vec<&StepRecord> = lineage.values().map(|(step, _)| *step).collect();
    let neighbours = steps.windows(2).filter(|pair| pair[0].generation == pair[1].generation);
    let mut seconds: Vec<f64> = neighbours.map(|pair| seconds(pair[0].at_ms, pair[1].at_ms)).collect();
    seconds.sort_unstable_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(0.0)
}

fn seconds(from_ms: u64, to_ms: u64) -> f64 {
    // An older version, or a clock that was set back, tells nothing.
    if from_ms == 0 { 0.0 } else { to_ms.saturating_sub(from_ms) as f64 / 1000.0 }
}

#[derive(Default)]
struct Reader<'a> {
    chapters: Vec<Chapter>,
    recipe: &'a str,
    /// Steps that count, with the recipe that they were trained by.
    lineage: BTreeMap<u64, (&'a StepRecord, &'a str)>,
    voided: BTreeMap<u64, (&'a StepRecord, &'a str)>,
    reproduced: u64,
    /// Generation of the newest record of a step.
    generation: Option<(u64, u64)>,
    /// Whether another coordinator has begun since then.
    changed_hands: bool,
    /// See [`Audit::lost_seconds`].
    gaps: Vec<Gap>,
}

impl<'a> Reader<'a> {
    fn read(&mut self, record: &'a Record) -> Result<(), String> {
        let head = self.lineage.last_key_value().map_or(0, |(step, _)| *step);
        match record {
            Record::Start { epoch, recipe, at_ms, .. } => {
                self.recipe = recipe;
                self.chapters.push(Chapter {
                    epoch: *epoch,
                    from: head,
                    voided: 0,
                    events: Vec::new(),
                    ending: None,
                    code: None,
                    started_ms: *at_ms,
                    ended_ms: None,
                });
                self.changed_hands = true;
            }
            Record::Rewind { to } => {
                let void = self.lineage.split_off(&to.saturating_add(1));
                let voided = void.len() as u64;
                if let Some(chapter) = self.chapters.last_mut() {
                    chapter.voided += voided;
                    chapter.events.push(Happening::WentBack { to: *to, voided });
                }
                self.voided.extend(void);
            }
            Record::Step(step) => self.step(step)?,
            Record::Slow { step, worker, ratio, drained, .. } => {
                if let Some(chapter) = self.chapters.last_mut() {
                    let (worker, step, ratio, drained) = (worker.clone(), *step, *ratio, *drained);
                    chapter.events.push(Happening::SlowWorker { worker, step, ratio, drained });
                }
            }
            Record::End { code, reason, at_ms } => {
                if let Some(chapter) = self.chapters.last_mut() {
                    (chapter.code, chapter.ending) = (code.clone(), Some(reason.clone()));
                    chapter.ended_ms = Some(*at_ms);
                }
            }
        }
        Ok(())
    }

    /// Seconds from the newest step that counts to `now_ms`, while somebody wanted the run to go on; `None` when the coordinator
    /// before this one was done.
    fn gap_seconds(&self, now_ms: u64) -> Option<f64> {
        let began_ms = || self.chapters.first().map_or(0, |chapter| chapter.started_ms);
        let kept_ms = self.lineage.last_key_value().map(|(_, (kept, _))| kept.at_ms).unwrap_or_else(began_ms);
        let gap = seconds(kept_ms, now_ms);
        let [.., before, this] = &self.chapters[..] else { return Some(gap) };
        if !self.changed_hands {
            return Some(gap);
        }
        let done = before.ending.is_some() && before.code.is_none();
        let pause = before.ended_ms.map_or(0.0, |ended| seconds(ended, this.started_ms));
        (!done).then_some(gap - pause)
    }

    /// Seconds between the newest steps that count, newest first, as far as they are of one generation.
    fn intervals(&self) -> Vec<f64> {
        let steps: Vec<&StepRecord> =
            self.lineage.values().rev().map(|(step, _)| *step).take(LOOKED_BACK + 1).collect();
        let pairs = steps.windows(2).take_while(|pair| pair[0].generation == pair[1].generation);
        pairs.map(|pair| seconds(pair[1].at_ms, pair[0].at_ms)).collect()
    }

    fn step(&mut self, step: &'a StepRecord) -> Result<(), String> {
        if let Some((void, recipe)) = self.voided.get(&step.step)
            && *recipe == self.recipe
            && !self.recipe.is_empty()
        {
            if void.outcome() != step.outcome() {
                return Err(format!("step {} led to another state when it was redone", step.step));
            }
            self.reproduced += 1;
        }
        if self.generation.is_some_and(|generation| generation != step.generation) {
            let before = self.intervals();
            self.gaps.extend(self.gap_seconds(step.at_ms).map(|seconds| Gap { seconds, before }));
        }
        (self.generation, self.changed_hands) = (Some(step.generation), false);
        if let Some(chapter) = self.chapters.last_mut() {
            chapter.add(step);
        }
        self.lineage.insert(step.step, (step, self.recipe));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{SampleSet, Skipped, Span},
        *,
    };

    fn step(step: u64, generation: (u64, u64), samples: &[u32], state: &str, at_ms: u64) -> Record {
        Record::Step(StepRecord {
            step,
            data_epoch: 0,
            generation,
            samples: SampleSet::new(samples.iter().copied()).unwrap(),
            loss: 1.0,
            loss_tokens: 1,
            tokens: 1,
            state_sha256: state.into(),
            at_ms,
            skipped: None,
        })
    }

    fn start(epoch: u64, at_ms: u64) -> Record {
        Record::Start { epoch, recipe: "r".into(), samples: 4, at_ms }
    }

    fn end(at_ms: u64, code: Option<&str>) -> Record {
        Record::End { at_ms, code: code.map(Into::into), reason: "so".into() }
    }

    /// Killed after step 3, of which step 1 is kept; then a failure, then the end.
    fn eventful(redone: &str) -> Vec<Record> {
        vec![
            start(1, 1_000),
            step(1, (1, 1), &[0], "a", 2_000),
            step(2, (1, 1), &[1], "b", 3_000),
            step(3, (1, 1), &[2], "c", 4_000),
            start(2, 9_000),
            Record::Rewind { to: 1 },
            step(2, (2, 2), &[1], redone, 11_000),
            end(12_000, Some("B4001")),
            start(3, 13_000),
            step(3, (3, 3), &[2], "c", 15_000),
            step(4, (3, 3), &[3], "d", 16_000),
            end(17_000, None),
        ]
    }

    #[test]
    fn a_run_tells_its_story() {
        let told = audit(&eventful("b"), Tail::Whole).unwrap();
        assert_eq!((told.samples, told.reproduced, told.state_sha256.as_deref()), (4, 2, Some("d")));
        let verified = Verified { head: 4, complete_epochs: 1, in_progress: 0, redone: 2, skipped: 0, passed_over: 0 };
        assert_eq!(told.verified, verified);
        let chapters: Vec<_> = told.chapters.iter().map(|c| (c.epoch, c.from, c.voided, c.code.as_deref())).collect();
        assert_eq!(chapters, [(1, 0, 0, None), (2, 3, 2, Some("B4001")), (3, 2, 0, None)]);
        assert_eq!(told.chapters[0].ending, None, "killed");
        assert_eq!(told.chapters[2].ending.as_deref(), Some("so"));
        let trained = |generation: &str, first_step, last_step| {
            Happening::Trained(Span { generation: generation.into(), first_step, last_step })
        };
        assert_eq!(told.chapters[0].events, [trained("1.1", 1, 3)]);
        assert_eq!(told.chapters[1].events, [Happening::WentBack { to: 1, voided: 2 }, trained("2.2", 2, 2)]);
        assert_eq!(told.chapters[2].events, [trained("3.3", 3, 4)]);
        assert_eq!(told.changes, 2);
        // From step 1 at 2 s to its successor at 11 s; from 11 s to 15 s, less a second after the end; a usual second less, each.
        assert!((told.lost_seconds - 10.0).abs() < 1e-9, "{}", told.lost_seconds);
    }

    /// A worker is lost after step 2; the survivors' generation goes on after 4 seconds, and later goes back itself.
    #[test]
    fn what_happens_under_one_coordinator_is_told_too() {
        let records = [
            start(1, 1_000),
            step(1, (1, 1), &[0], "a", 2_000),
            step(2, (1, 1), &[1], "b", 3_000),
            step(3, (1, 2), &[2], "c", 7_000),
            Record::Rewind { to: 2 },
            step(3, (1, 3), &[2], "c", 9_000),
            step(4, (1, 3), &[3], "d", 10_000),
            end(11_000, None),
        ];
        let told = audit(&records, Tail::Whole).unwrap();
        assert_eq!((told.changes, told.reproduced, told.chapters[0].voided), (2, 1, 1));
        assert_eq!(told.chapters[0].events.len(), 4);
        // From step 2 at 3 s to 7 s, and again to 9 s; a usual second less, each.
        assert!((told.lost_seconds - 8.0).abs() < 1e-9, "{}", told.lost_seconds);
    }

    /// Everyone is apart from the coordinator for 20 seconds after step 4, and brings steps 5 and 6 when they join again.
    #[test]
    fn steps_that_survivors_bring_do_not_hide_how_long_nobody_was_heard_of() {
        let at = [1_000, 2_000, 3_000, 4_000, 24_000, 24_010, 24_500, 25_500];
        let mut records = vec![start(1, 100)];
        records.extend((0..4).map(|n| step(n + 1, (1, 1), &[n as u32], "s", at[n as usize])));
        // Another pass over the data.
        let second = |n: u64| (n + 1, (1, if n < 6 { 1 } else { 2 }), [n as u32 - 4], at[n as usize]);
        for (number, generation, samples, at_ms) in (4..8).map(second) {
            let Record::Step(record) = step(number, generation, &samples, "s", at_ms) else { continue };
            records.push(Record::Step(StepRecord { data_epoch: 1, ..record }));
        }
        let told = audit(&records, Tail::Whole).unwrap();
        // From step 4 at 4 s to step 7 at 24.5 s; three usual seconds less.
        assert!((told.lost_seconds - 17.5).abs() < 1e-9, "{}", told.lost_seconds);
    }

    #[test]
    fn a_skipped_step_is_told_between_the_steps_that_were_trained() {
        let skipped = Skipped { loss: SampleSet::default(), gradient: SampleSet::new([2]).unwrap() };
        let mut records = eventful("b");
        let skip = |record: &mut Record| match record {
            Record::Step(step) if step.step == 3 => step.skipped = Some(skipped.clone()),
            _ => {}
        };
        records.iter_mut().for_each(skip);
        let told = audit(&records, Tail::Whole).unwrap();
        assert_eq!((told.verified.skipped, told.verified.passed_over, told.reproduced), (1, 1, 2));
        let span = |first_step, last_step| Happening::Trained(Span { generation: "3.3".into(), first_step, last_step });
        assert_eq!(told.chapters[2].events, [Happening::Skipped { step: 3, skipped: skipped.clone() }, span(4, 4)]);
        let json = serde_json::to_value(&told.chapters[2].events[0]).unwrap();
        assert_eq!(json, serde_json::json!({"event": "skipped", "step": 3, "loss": "", "gradient": "2"}));
        // Redone, it must be skipped again, for the same reason.
        if let Some(Record::Step(step)) = records.iter_mut().rev().find(|r| matches!(r, Record::Step(s) if s.step == 3))
        {
            step.skipped = None;
        }
        assert!(audit(&records, Tail::Whole).unwrap_err().to_string().contains("step 3 led to another state"));
    }

    #[test]
    fn what_is_no_proof_is_told() {
        assert!(audit(&eventful("x"), Tail::Whole).unwrap_err().to_string().contains("step 2 led to another state"));
        assert!(audit(&[], Tail::Whole).unwrap_err().to_string().contains("no coordinator"));
        let twice = [start(1, 0), step(1, (1, 1), &[0], "a", 0), step(2, (1, 1), &[0], "b", 0)];
        assert!(audit(&twice, Tail::Whole).unwrap_err().to_string().contains("a second time"));
        let old = Record::Start { epoch: 1, recipe: "r".into(), samples: 0, at_ms: 0 };
        assert_eq!(audit(&[old], Tail::Whole), Err(Unproven::Older));
        assert!(audit(&eventful("b"), Tail::Damaged).unwrap_err().to_string().contains("checksum of its last line"));
        assert!(audit(&eventful("b"), Tail::Unfinished).unwrap().unfinished_line);
    }

    /// Whoever extends a finished run the next morning has lost nothing.
    #[test]
    fn a_run_that_was_complete_costs_nothing_to_extend() {
        let day = 86_400_000;
        let records = [
            start(1, 1_000),
            step(1, (1, 1), &[0], "a", 2_000),
            end(3_000, None),
            start(2, day),
            step(2, (2, 2), &[1], "b", day + 5_000),
        ];
        assert!(audit(&records, Tail::Whole).unwrap().lost_seconds.abs() < 1e-9);
    }

    /// Lines of an older version have no times.
    #[test]
    fn older_lines_are_read() {
        let line = r#"{"kind":"start","epoch":1,"recipe":"r"}"#;
        let read: Record = serde_json::from_str(line).unwrap();
        assert_eq!(read, Record::Start { epoch: 1, recipe: "r".into(), samples: 0, at_ms: 0 });
    }
}
