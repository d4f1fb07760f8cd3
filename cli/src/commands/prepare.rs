//! `ballast prepare`

use crate::args::PrepareArgs;
use crate::failure::coded;
use crate::screen::{self, Screen};
use crate::setup;
use ballast_basemodel::BaseModel;
use ballast_coordinator::data::{PreparedSet, Span, Stats};
use ballast_proto::exit;
use std::fmt::Write;
use std::io::IsTerminal;

pub(super) fn run(args: &PrepareArgs, screen: &Screen) -> anyhow::Result<u8> {
    let resolved = setup::resolve(&args.file, false)?;
    let run = &resolved.run;
    let model = setup::open_model(run, screen)?;
    let prepared = setup::prepare(run, &model, screen)?;
    for warning in &prepared.warnings {
        screen.line(&format!("warning: {warning}"));
    }
    let directory = args.out.clone().unwrap_or_else(|| run.run.dir.join("prepared"));
    prepared.write_rows(&directory).map_err(coded)?;
    let mut text = statistics(&prepared.stats);
    text += &shown_samples(&prepared, &model, args.show)?;
    let _ = writeln!(text, "\nrows and manifest are in {}", directory.display());
    screen::print(&text)?;
    Ok(exit::DONE)
}

/// The counts that say something, a line each.
fn statistics(stats: &Stats) -> String {
    let mut text = String::new();
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 };
    let mut line = |what: &str, value: String| {
        let _ = writeln!(text, "{what:<22}{value}");
    };
    line("rows", stats.rows.to_string());
    line("samples", stats.samples.to_string());
    line("tokens", stats.tokens.to_string());
    line("  that bear loss", format!("{} ({:.1}%)", stats.loss_tokens, share(stats.loss_tokens, stats.tokens)));
    line(
        "  added by LookAhead",
        format!("{} ({:.1}%)", stats.preview_tokens, share(stats.preview_tokens, stats.tokens)),
    );
    line("tokens a sample", format!("{} to {}, mean {:.1}", stats.min_tokens, stats.max_tokens, stats.mean_tokens));
    line("rows with a preview", stats.rewritten.to_string());
    let rare = [
        ("malformed, left out", stats.bad_rows),
        ("too long, cut", stats.truncated),
        ("too long, left out", stats.skipped),
        ("no loss left by a cut", stats.truncated_away),
        ("empty answers", stats.empty_answers),
        ("short answers", stats.short_answers),
        ("answers wholly shown", stats.whole_previews),
        ("without a preview", stats.passed_through),
    ];
    for (what, count) in rare.into_iter().filter(|(_, count)| *count > 0) {
        line(what, count.to_string());
    }
    text
}

/// The first samples as text, the stretches that bear loss marked: by colour on a terminal, by `[[` and `]]` elsewhere.
fn shown_samples(prepared: &PreparedSet, model: &BaseModel, count: usize) -> anyhow::Result<String> {
    let tokenizer = model.tokenizer().map_err(coded)?;
    let colour = std::io::stdout().is_terminal();
    let mut text = String::new();
    for index in 0..count {
        let Some(spans) = prepared.spans(index, &tokenizer).map_err(coded)? else { break };
        let marks = if colour { "in green" } else { "between [[ and ]]" };
        let tokens = prepared.samples.get(index).map_or(0, |sample| sample.ids.len());
        let _ = writeln!(text, "\nsample {index}, {tokens} tokens, loss {marks}:");
        text.extend(spans.iter().map(|span| marked(span, colour)));
        text.push('\n');
    }
    Ok(text)
}

fn marked(span: &Span, colour: bool) -> String {
    match (span.loss, colour) {
        (false, _) => span.text.clone(),
        (true, true) => console::style(&span.text).green().force_styling(true).to_string(),
        (true, false) => format!("[[{}]]", span.text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_marked_in_plain_text() {
        let span = |text: &str, loss| Span { text: text.into(), loss };
        let text: String =
            [span("question ", false), span("answer", true)].iter().map(|span| marked(span, false)).collect();
        assert_eq!(text, "question [[answer]]");
    }

    #[test]
    fn rare_counts_are_shown_only_when_there_are_any() {
        let text =
            statistics(&Stats { rows: 3, samples: 2, bad_rows: 1, tokens: 40, loss_tokens: 10, ..Stats::default() });
        assert!(text.contains("malformed, left out   1\n") && text.contains("10 (25.0%)"), "{text}");
        assert!(!text.contains("too long"), "{text}");
    }
}
