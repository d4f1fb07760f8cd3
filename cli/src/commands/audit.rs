//! `ballast audit`

use crate::args::AuditArgs;
use crate::screen;
use anyhow::Context;
use ballast_coordinator::ledger::{self, Audit, Chapter, Happening, LEDGER, Unproven};
use ballast_proto::{ErrorCode, Failure, exit};
use std::fmt::Write;

pub(super) fn run(args: &AuditArgs) -> anyhow::Result<u8> {
    let path = if args.run.is_dir() { args.run.join(LEDGER) } else { args.run.clone() };
    if !path.is_file() {
        let message = format!("{}: there is no ledger: name the directory of a run", path.display());
        return Err(Failure::new(ErrorCode::ReportUnreadable, message).into());
    }
    let (records, _, tail) = ledger::read(&path).map_err(Failure::from)?;
    let audit = ledger::audit(&records, tail).map_err(|unproven| {
        let code = match unproven {
            Unproven::Broken(_) => ErrorCode::LedgerCorrupt,
            Unproven::Older => ErrorCode::ReportUnreadable,
        };
        Failure::new(code, format!("{}: {unproven}", path.display()))
    })?;
    let text = if args.json {
        serde_json::to_string_pretty(&audit).context("the audit as JSON")? + "\n"
    } else {
        describe(&audit)
    };
    screen::print(&text)?;
    Ok(exit::DONE)
}

/// The story, a line an event, and the verdict.
fn describe(audit: &Audit) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{words}");
    };
    for chapter in &audit.chapters {
        line(beginning(chapter));
        for event in &chapter.events {
            line(match event {
                Happening::Trained(span) => {
                    format!("  generation {}: steps {} to {}", span.generation, span.first_step, span.last_step)
                }
                Happening::Skipped { step, skipped } => format!("  step {step} skipped: {skipped}"),
                Happening::SlowWorker { worker, step, ratio, drained } => {
                    let then = if *drained { ", and was asked to leave" } else { "" };
                    format!("  step {step}: worker {worker} took {ratio:.1} times the others' seconds a token{then}")
                }
                Happening::WentBack { to, voided } => {
                    format!("  nobody had the newest state any more: went back to step {to}, voiding {voided}")
                }
            });
        }
        line(match (&chapter.code, &chapter.ending) {
            (Some(code), Some(reason)) => format!("  {code}: {reason}"),
            (None, Some(reason)) => format!("  {reason}"),
            (_, None) => "  it ended without a word, or is still at work".to_owned(),
        });
    }
    if audit.unfinished_line {
        line("the last line is unfinished and not counted".to_owned());
    }
    let verified = &audit.verified;
    line(format!(
        "steps that count: {}; redone: {}, of them by the same recipe and to the same state: {}",
        verified.head, verified.redone, audit.reproduced
    ));
    line(format!("{} changes of the membership cost {:.1} s", audit.changes, audit.lost_seconds));
    if verified.skipped > 0 {
        let (steps, samples) = (verified.skipped, verified.passed_over);
        line(format!(
            "steps skipped because a loss or gradient was not finite: {steps}; samples passed over in them: {samples}"
        ));
    }
    let samples = audit.samples;
    let trained = if verified.skipped > 0 { "trained or skipped" } else { "trained" };
    line(match (verified.complete_epochs, verified.in_progress) {
        (0, begun) => format!("no sample was {trained} twice: {begun} of {samples} so far"),
        (complete, 0) => {
            format!("every one of {samples} samples was {trained} exactly once per epoch: complete epochs {complete}")
        }
        (complete, begun) => format!(
            "every one of {samples} samples was {trained} exactly once per epoch: complete epochs {complete}, and no sample twice \
             in the next: {begun} so far"
        ),
    });
    text
}

fn beginning(chapter: &Chapter) -> String {
    match chapter.from {
        0 => format!("coordinator {} began", chapter.epoch),
        from => format!("coordinator {} went on after step {from}", chapter.epoch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_coordinator::ledger::{Record, SampleSet, Skipped, StepRecord, Tail};

    fn step(step: u64, epoch: u64, at_ms: u64) -> Record {
        Record::Step(StepRecord {
            step,
            data_epoch: 0,
            generation: (epoch, epoch),
            samples: SampleSet::new([step as u32 - 1]).unwrap_or_default(),
            loss: 1.0,
            loss_tokens: 1,
            tokens: 1,
            state_sha256: format!("{step}"),
            at_ms,
            skipped: None,
        })
    }

    fn start(epoch: u64, at_ms: u64) -> Record {
        Record::Start { epoch, recipe: "r".into(), samples: 2, at_ms }
    }

    fn told(records: &[Record], tail: Tail) -> String {
        ledger::audit(records, tail).map_or_else(|unproven| unproven.to_string(), |audit| describe(&audit))
    }

    #[test]
    fn the_story_is_told_in_lines() {
        let killed = [start(1, 1000), step(1, 1, 2000), step(2, 1, 3000)];
        assert_eq!(
            told(&killed[..2], Tail::Unfinished),
            "coordinator 1 began\n  generation 1.1: steps 1 to 1\n  it ended without a word, or is still at work\n\
             the last line is unfinished and not counted\n\
             steps that count: 1; redone: 0, of them by the same recipe and to the same state: 0\n\
             0 changes of the membership cost 0.0 s\nno sample was trained twice: 1 of 2 so far\n"
        );
        let mut skipped = killed.clone();
        if let Record::Step(step) = &mut skipped[2] {
            step.skipped = Some(Skipped { gradient: step.samples.clone(), ..Skipped::default() });
        }
        assert_eq!(
            told(&skipped, Tail::Whole),
            "coordinator 1 began\n  generation 1.1: steps 1 to 1\n  \
             step 2 skipped: gradient not finite in the micro-batches of samples 1\n  \
             it ended without a word, or is still at work\n\
             steps that count: 2; redone: 0, of them by the same recipe and to the same state: 0\n\
             0 changes of the membership cost 0.0 s\n\
             steps skipped because a loss or gradient was not finite: 1; samples passed over in them: 1\n\
             every one of 2 samples was trained or skipped exactly once per epoch: complete epochs 1\n"
        );
        let end = Record::End { at_ms: 9000, code: Some("B4001".into()), reason: "a worker was lost".into() };
        let again = [&killed[..], &[start(2, 7000), Record::Rewind { to: 1 }, step(2, 2, 8000), end]].concat();
        assert_eq!(
            told(&again, Tail::Whole),
            "coordinator 1 began\n  generation 1.1: steps 1 to 2\n  it ended without a word, or is still at work\n\
             coordinator 2 went on after step 2\n  nobody had the newest state any more: went back to step 1, voiding 1\n  \
             generation 2.2: steps 2 to 2\n  B4001: a worker was lost\n\
             steps that count: 2; redone: 1, of them by the same recipe and to the same state: 1\n\
             1 changes of the membership cost 6.0 s\n\
             every one of 2 samples was trained exactly once per epoch: complete epochs 1\n"
        );
    }
}
