//! `ballast audit`

use crate::args::AuditArgs;
use crate::screen;
use anyhow::Context;
use ballast_coordinator::ledger::{self, Audit, Chapter, LEDGER};
use ballast_proto::{ErrorCode, Failure, exit};
use std::fmt::Write;

pub(super) fn run(args: &AuditArgs) -> anyhow::Result<u8> {
    let path = if args.run.is_dir() { args.run.join(LEDGER) } else { args.run.clone() };
    if !path.is_file() {
        let message = format!("{}: there is no ledger: name the directory of a run", path.display());
        return Err(Failure::new(ErrorCode::ReportUnreadable, message).into());
    }
    let (records, _, torn) = ledger::read(&path).map_err(Failure::from)?;
    let broken = |problem| Failure::new(ErrorCode::LedgerCorrupt, format!("{}: {problem}", path.display()));
    let audit = ledger::audit(&records).map_err(broken)?;
    let text = if args.json {
        serde_json::to_string_pretty(&audit).context("the audit as JSON")? + "\n"
    } else {
        describe(&audit, torn)
    };
    screen::print(&text)?;
    Ok(exit::DONE)
}

/// The story, a line an event, and the verdict.
fn describe(audit: &Audit, torn: bool) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{words}");
    };
    for chapter in &audit.chapters {
        line(beginning(chapter));
        for span in &chapter.generations {
            line(format!("  generation {}: steps {} to {}", span.generation, span.first_step, span.last_step));
        }
        line(match (&chapter.code, &chapter.ending) {
            (Some(code), Some(reason)) => format!("  {code}: {reason}"),
            (None, Some(reason)) => format!("  {reason}"),
            (_, None) => "  it ended without a word, or is still at work".to_owned(),
        });
    }
    if torn {
        line("the last line is torn: its step was not committed".to_owned());
    }
    let verified = &audit.verified;
    line(format!(
        "steps that count: {}; redone: {}, of them by the same recipe and to the same state: {}",
        verified.head, verified.redone, audit.reproduced
    ));
    line(format!("faults cost {:.1} s", audit.lost_seconds));
    let epochs = match (verified.complete_epochs, verified.in_progress) {
        (complete, 0) => format!("{complete} complete epochs"),
        (complete, begun) => format!("{complete} complete epochs and {begun} samples of the next"),
    };
    line(format!("every one of {} samples was trained exactly once per epoch: {epochs}", audit.samples));
    text
}

fn beginning(chapter: &Chapter) -> String {
    match (chapter.from, chapter.voided) {
        (0, 0) => format!("coordinator {} began", chapter.epoch),
        (from, 0) => format!("coordinator {} went on after step {from}", chapter.epoch),
        (from, voided) => format!("coordinator {} went back to step {from}, voiding {voided}", chapter.epoch),
    }
}
