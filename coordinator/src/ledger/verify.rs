//! The proof that every sample was trained exactly once per epoch, from the ledger's records alone.

use super::{Record, StepRecord};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a ledger proves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Newest step that counts.
    pub head: u64,
    /// Passes over the data that are complete.
    pub complete_epochs: u64,
    /// Samples trained in the last, unfinished pass.
    pub in_progress: u64,
    /// Steps that were trained more than once because a coordinator had to go back.
    pub redone: u64,
    /// Steps whose update was not applied, because a loss or a gradient was not finite.
    #[serde(default)]
    pub skipped: u64,
    /// Samples passed over in them, over all epochs.
    #[serde(default)]
    pub passed_over: u64,
}

/// Checks a ledger's records against the number of samples in the prepared set: in the lineage of the newest step, of which skipped
/// steps are a part,
/// steps follow one another without a gap, generations never fall, epochs come in order, no sample occurs twice in an
/// epoch, and none is missing from an epoch that a later one follows.
///
/// # Errors
/// In words, the first rule that is broken.
pub fn verify(records: &[Record], samples: u64) -> Result<Verified, String> {
    let mut lineage: BTreeMap<u64, &StepRecord> = BTreeMap::new();
    let mut epoch = 0;
    let mut redone = 0;
    for record in records {
        match record {
            Record::Start { epoch: next, .. } if *next <= epoch => {
                return Err(format!("coordinator epoch {next} follows {epoch}"));
            }
            Record::Start { epoch: next, .. } => epoch = *next,
            Record::End { .. } | Record::Slow { .. } => {}
            Record::Rewind { to } => redone += lineage.split_off(&to.saturating_add(1)).len() as u64,
            Record::Step(step) => {
                let head = lineage.last_key_value().map_or(0, |(head, _)| *head);
                if step.step != head + 1 {
                    return Err(format!("step {} follows step {head}", step.step));
                }
                // An earlier coordinator's: its workers applied the step and told the next one of it.
                if step.generation.0 > epoch {
                    return Err(format!(
                        "step {} is of coordinator epoch {}, recorded in {epoch}",
                        step.step, step.generation.0
                    ));
                }
                if lineage.values().next_back().is_some_and(|previous| previous.generation > step.generation) {
                    return Err(format!("step {} is of an older generation than the step before it", step.step));
                }
                lineage.insert(step.step, step);
            }
        }
    }
    let skipped = || lineage.values().filter(|step| step.skipped.is_some());
    exactly_once(lineage.values().copied(), samples).map(|(complete_epochs, in_progress)| Verified {
        head: lineage.len() as u64,
        complete_epochs,
        in_progress,
        redone,
        skipped: skipped().count() as u64,
        passed_over: skipped().map(|step| step.samples.len() as u64).sum(),
    })
}

/// Complete epochs, and samples of the one after them.
fn exactly_once<'a>(steps: impl Iterator<Item = &'a StepRecord>, samples: u64) -> Result<(u64, u64), String> {
    let mut epoch = 0;
    let mut seen = BTreeSet::new();
    for step in steps {
        if step.data_epoch != epoch {
            if step.data_epoch != epoch + 1 || seen.len() as u64 != samples {
                let have = seen.len();
                return Err(format!(
                    "step {} begins epoch {} after {have} of {samples} samples",
                    step.step, step.data_epoch
                ));
            }
            epoch += 1;
            seen.clear();
        }
        for sample in step.samples.iter() {
            if u64::from(sample) >= samples {
                return Err(format!("step {} trained sample {sample} of {samples}", step.step));
            }
            if !seen.insert(sample) {
                return Err(format!("step {} trained sample {sample} a second time in epoch {epoch}", step.step));
            }
        }
    }
    let seen = seen.len() as u64;
    Ok(if samples > 0 && seen == samples { (epoch + 1, 0) } else { (epoch, seen) })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{SampleSet, Skipped},
        *,
    };

    fn step(step: u64, data_epoch: u64, generation: (u64, u64), samples: &[u32]) -> Record {
        Record::Step(StepRecord {
            step,
            data_epoch,
            generation,
            samples: SampleSet::new(samples.iter().copied()).unwrap(),
            loss: 1.0,
            loss_tokens: 1,
            tokens: 1,
            state_sha256: String::new(),
            at_ms: 0,
            skipped: None,
        })
    }

    fn skipped(mut record: Record) -> Record {
        if let Record::Step(step) = &mut record {
            step.skipped = Some(Skipped { gradient: step.samples.clone(), ..Skipped::default() });
        }
        record
    }

    fn start(epoch: u64) -> Record {
        Record::Start { epoch, recipe: "r".into(), samples: 4, at_ms: 0 }
    }

    #[test]
    fn a_resumed_run_is_exactly_once_in_its_lineage() {
        let records = [
            start(1),
            step(1, 0, (1, 1), &[0, 3]),
            step(2, 0, (1, 1), &[1, 2]),
            step(3, 1, (1, 1), &[2, 3]),
            start(2),
            Record::Rewind { to: 1 },
            skipped(step(2, 0, (2, 2), &[1, 2])),
            step(3, 1, (2, 2), &[2, 3]),
        ];
        let proof = Verified { head: 3, complete_epochs: 1, in_progress: 2, redone: 2, skipped: 1, passed_over: 2 };
        assert_eq!(verify(&records, 4), Ok(proof));
    }

    #[test]
    fn every_breach_is_found() {
        let breaches: [(&[Record], &str); 7] = [
            (&[start(1), step(2, 0, (1, 1), &[0])], "step 2 follows step 0"),
            (&[start(1), step(1, 0, (1, 1), &[0]), step(2, 0, (1, 1), &[0])], "a second time"),
            (&[start(1), step(1, 0, (1, 1), &[0]), step(2, 1, (1, 1), &[1])], "after 1 of 2 samples"),
            (&[start(1), step(1, 0, (1, 1), &[7])], "sample 7 of 2"),
            (&[start(1), step(1, 0, (1, 2), &[0]), step(2, 0, (1, 1), &[1])], "older generation"),
            (&[start(2), start(2)], "epoch 2 follows 2"),
            (&[start(2), step(1, 0, (3, 1), &[0])], "of coordinator epoch 3, recorded in 2"),
        ];
        for (records, expected) in breaches {
            let problem = verify(records, 2).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
