//! The end of a run, told: where the adapter is, and what changed between base and tuned model.

use crate::args::LogFormat;
use crate::screen::{self, Screen};
use crate::{answers, report_file};
use ballast_coordinator::evaluation::{Evaluation, Heldout, Probes};
use ballast_coordinator::report::Report;
use ballast_coordinator::server::RunOutcome;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;
use std::fmt::Write;

/// Tells how a run ended, and what its report says.
pub(crate) fn tell(outcome: &RunOutcome, screen: &Screen) -> anyhow::Result<()> {
    if screen.format() == LogFormat::Json {
        screen.json(&json!({
            "event": "end",
            "exit_code": outcome.exit_code,
            "reason": outcome.reason,
            "adapter": outcome.adapter,
            "report": outcome.report,
            "checkpoint": outcome.checkpoint,
        }));
        return Ok(());
    }
    let mut text = String::new();
    if let (Some(path), None) = (&outcome.report, &outcome.failure) {
        text += &told(&report_file::read(path)?);
    }
    if outcome.failure.is_none() {
        let _ = writeln!(text, "{}", outcome.reason);
    }
    let places = [("adapter", &outcome.adapter), ("report", &outcome.report), ("checkpoint", &outcome.checkpoint)];
    for (what, path) in places {
        if let Some(path) = path {
            let _ = writeln!(text, "{what:<12}{}", path.display());
        }
    }
    screen::print(&text)
}

/// The report, for people.
fn told(report: &Report) -> String {
    let mut text = String::from("\n");
    if let (Some(first), Some(last)) = (report.losses.first(), report.losses.last()) {
        let speed = report.throughput.tokens_per_second.map(|t| format!(", {t:.0} tokens/s")).unwrap_or_default();
        let _ = writeln!(text, "{} steps, loss {first:.4} at the first and {last:.4} at the last{speed}", report.steps);
    }
    if !report.skipped.is_empty() {
        let (skipped, samples) = (report.skipped.len(), report.exactly_once.passed_over);
        let _ = writeln!(
            text,
            "{skipped} steps were skipped, with {samples} samples: a loss or gradient was not finite; `ballast audit` names them"
        );
    }
    let Some(evaluation) = &report.evaluation else { return text };
    let _ = writeln!(text, "\n{}", base_and_tuned(evaluation));
    if let Some(heldout) = &evaluation.heldout {
        text += &drift(&heldout.kl);
    }
    if let Some(rate) = evaluation.prefix_leak_rate {
        let _ = writeln!(text, "answers that begin with the LookAhead prefix: {}", percent(rate));
    }
    for answer in &evaluation.samples {
        let _ = writeln!(text, "\n{}", answers::side_by_side(answer));
    }
    text
}

/// Likelihoods and refusals of both models.
fn base_and_tuned(evaluation: &Evaluation) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["", "base", "tuned", "change"]);
    if let Some(Heldout { samples, first_tokens, base, tuned, .. }) = &evaluation.heldout {
        let mut row = |what: String, base: Option<f64>, tuned: Option<f64>| {
            if let (Some(base), Some(tuned)) = (base, tuned) {
                table.add_row([what, format!("{base:.4}"), format!("{tuned:.4}"), format!("{:+.4}", tuned - base)]);
            }
        };
        row(format!("NLL of the first {first_tokens} answer tokens"), base.first, tuned.first);
        row("NLL of the later ones".into(), base.later, tuned.later);
        row(format!("NLL of all ({samples} held-out answers)"), base.all, tuned.all);
    }
    if let Some(Probes { prompts, base, tuned, .. }) = &evaluation.probes {
        for (how, base, tuned) in [("strict", base.strict, tuned.strict), ("loose", base.loose, tuned.loose)] {
            let change = format!("{:+.1} points", 100.0 * (tuned - base));
            table.add_row([format!("refusals of {prompts} probes, {how}"), percent(base), percent(tuned), change]);
        }
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// KL(tuned || base) at the first answer positions, as bars.
fn drift(kl: &[f64]) -> String {
    const WIDTH: f64 = 40.0;
    let largest = kl.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut text = String::from("\nKL(tuned || base) at answer positions, in nats\n");
    for (position, value) in kl.iter().enumerate() {
        let bar = "#".repeat((value / largest * WIDTH).round().clamp(0.0, WIDTH) as usize);
        let _ = writeln!(text, "{:>3}  {value:8.5}  {bar}", position + 1);
    }
    if kl.is_empty() { String::new() } else { text }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_coordinator::evaluation::MeanNll;

    #[test]
    fn drift_is_drawn_to_scale() {
        let text = drift(&[0.5, 0.25, 0.0]);
        let bars: Vec<_> = text.lines().skip(2).map(|line| line.matches('#').count()).collect();
        assert_eq!(bars, [40, 20, 0]);
        assert_eq!(drift(&[]), "");
        assert!(drift(&[0.0, 0.0]).lines().skip(2).all(|line| !line.contains('#')));
    }

    #[test]
    fn what_was_not_measured_is_not_told() {
        let nll = |first| MeanNll { first: Some(first), later: None, all: Some(1.0) };
        let evaluation = Evaluation {
            heldout: Some(Heldout { samples: 3, first_tokens: 8, base: nll(2.5), tuned: nll(2.0), kl: vec![] }),
            probes: None,
            samples: vec![],
            prefix_leak_rate: None,
        };
        let text = base_and_tuned(&evaluation).to_string();
        assert!(text.contains("first 8 answer tokens") && text.contains("-0.5000"), "{text}");
        assert!(!text.contains("later") && !text.contains("refusals"), "{text}");
    }
}
