//! Runs side by side: what was set differently, and what came of it.

use crate::summary::percent;
use ballast_coordinator::evaluation::{FIRST_TOKENS, MeanNll, RefusalRates};
use ballast_coordinator::report::Report;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Losses of a single step are noisy: the end of a run is the mean of this many.
const LAST_STEPS: usize = 10;

/// What a comparison needs of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Digest {
    run: String,
    settings: Map<String, Value>,
    data_sha256: String,
    samples: u64,
    steps: u64,
    finished: bool,
    first_loss: Option<f64>,
    /// Mean over the last steps.
    last_loss: Option<f64>,
    tokens_per_second: Option<f64>,
    nll_base: Option<MeanNll>,
    nll_tuned: Option<MeanNll>,
    /// KL(tuned || base) at answer positions 1, 2, ...
    kl: Vec<f64>,
    refusals_base: Option<RefusalRates>,
    refusals_tuned: Option<RefusalRates>,
    prefix_leak_rate: Option<f64>,
}

impl Digest {
    /// Of a report.
    pub(crate) fn of(report: &Report) -> Self {
        let heldout = report.evaluation.as_ref().and_then(|e| e.heldout.as_ref());
        let probes = report.evaluation.as_ref().and_then(|e| e.probes.as_ref());
        let last = report.losses.len().saturating_sub(LAST_STEPS);
        let last = report.losses.get(last..).unwrap_or_default();
        Self {
            run: report.run.clone(),
            settings: report.settings.clone(),
            data_sha256: report.inputs.data_sha256.clone(),
            samples: report.inputs.samples,
            steps: report.steps,
            finished: report.finished,
            first_loss: report.losses.first().copied(),
            last_loss: (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64),
            tokens_per_second: report.throughput.tokens_per_second,
            nll_base: heldout.map(|h| h.base),
            nll_tuned: heldout.map(|h| h.tuned),
            kl: heldout.map(|h| h.kl.clone()).unwrap_or_default(),
            refusals_base: probes.map(|p| p.base),
            refusals_tuned: probes.map(|p| p.tuned),
            prefix_leak_rate: report.evaluation.as_ref().and_then(|e| e.prefix_leak_rate),
        }
    }
}

/// Runs of one name are told apart by where they lie.
pub(crate) fn tell_apart(digests: &mut [Digest], places: &[PathBuf]) {
    let names: Vec<String> = digests.iter().map(|digest| digest.run.clone()).collect();
    for (digest, place) in digests.iter_mut().zip(places) {
        if names.iter().filter(|name| **name == digest.run).count() > 1 {
            digest.run = place.display().to_string();
        }
    }
}

/// A JSON array of the runs.
pub(crate) fn json(digests: &[Digest]) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(digests)? + "\n")
}

/// A column a run. Settings stand there only when they differ, measures only when some run has them.
pub(crate) fn table(digests: &[Digest]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(std::iter::once(String::new()).chain(digests.iter().map(|d| d.run.clone())));
    let names = digests.iter().flat_map(|d| d.settings.keys()).fold(Vec::new(), |mut names: Vec<&String>, name| {
        if !names.contains(&name) {
            names.push(name);
        }
        names
    });
    for name in names {
        let values: Vec<_> = digests.iter().map(|d| d.settings.get(name).unwrap_or(&Value::Null)).collect();
        if values.windows(2).any(|pair| pair[0] != pair[1]) {
            let shown = values.into_iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            table.add_row(std::iter::once(name.clone()).chain(shown));
        }
    }
    for (name, measure) in measures(digests) {
        let values: Vec<_> = digests.iter().map(measure).collect();
        if values.iter().any(Option::is_some) {
            let shown = values.into_iter().map(|value| value.unwrap_or_else(|| "-".into()));
            table.add_row(std::iter::once(name).chain(shown));
        }
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines = table.to_string();
    lines.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

type Measure = Box<dyn Fn(&Digest) -> Option<String>>;

/// What is measured, in the order of a run.
fn measures(digests: &[Digest]) -> Vec<(String, Measure)> {
    let nll = |what: &str, of: fn(&MeanNll) -> Option<f64>| -> (String, Measure) {
        let shown = move |d: &Digest| {
            let (base, tuned) = (of(d.nll_base.as_ref()?)?, of(d.nll_tuned.as_ref()?)?);
            Some(format!("{base:.4} -> {tuned:.4}"))
        };
        (format!("NLL, {what} answer tokens"), Box::new(shown))
    };
    let refusals = |how: &str, of: fn(&RefusalRates) -> f64| -> (String, Measure) {
        let shown = move |d: &Digest| {
            let (base, tuned) = (of(d.refusals_base.as_ref()?), of(d.refusals_tuned.as_ref()?));
            Some(format!("{} -> {}", percent(base), percent(tuned)))
        };
        (format!("refusals, {how}"), Box::new(shown))
    };
    let mut measures: Vec<(String, Measure)> = vec![
        ("data".into(), Box::new(|d| d.data_sha256.get(..12).map(str::to_owned))),
        ("samples".into(), Box::new(|d| Some(d.samples.to_string()))),
        (
            "steps".into(),
            Box::new(|d| Some(if d.finished { d.steps.to_string() } else { format!("{} (not finished)", d.steps) })),
        ),
        ("first loss".into(), Box::new(|d| d.first_loss.map(|loss| format!("{loss:.4}")))),
        (format!("loss, mean of the last {LAST_STEPS}"), Box::new(|d| d.last_loss.map(|loss| format!("{loss:.4}")))),
        ("tokens/s".into(), Box::new(|d| d.tokens_per_second.map(|t| format!("{t:.0}")))),
        nll(&format!("first {FIRST_TOKENS}"), |nll| nll.first),
        nll("later", |nll| nll.later),
    ];
    let positions = digests.iter().map(|d| d.kl.len()).max().unwrap_or(0);
    for position in 0..positions {
        let shown = move |d: &Digest| d.kl.get(position).map(|kl| format!("{kl:.5}"));
        measures.push((format!("KL, answer position {}", position + 1), Box::new(shown)));
    }
    measures.push(refusals("strict", |r| r.strict));
    measures.push(refusals("loose", |r| r.loose));
    measures.push(("answers with the prefix".into(), Box::new(|d| d.prefix_leak_rate.map(percent))));
    measures
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn digest(run: &str, lookahead: &str) -> Digest {
        let Value::Object(settings) = json!({"seed": 42, "lookahead": lookahead}) else { unreachable!() };
        Digest {
            run: run.into(),
            settings,
            data_sha256: "0123456789abcdef".into(),
            samples: 5,
            steps: 7,
            finished: true,
            first_loss: Some(2.0),
            last_loss: Some(1.5),
            tokens_per_second: Some(99.6),
            nll_base: None,
            nll_tuned: None,
            kl: vec![0.25],
            refusals_base: None,
            refusals_tuned: None,
            prefix_leak_rate: None,
        }
    }

    #[test]
    fn runs_of_one_name_are_told_apart() {
        let mut digests = [digest("a", "off"), digest("a", "off"), digest("b", "off")];
        tell_apart(&mut digests, &["one".into(), "two".into(), "three".into()]);
        assert_eq!(digests.map(|digest| digest.run), ["one", "two", "b"]);
    }

    #[test]
    fn a_table_shows_what_differs_and_what_was_measured() {
        let text = table(&[digest("plain", "off"), Digest { kl: vec![], ..digest("ahead", "virtual") }]);
        let row = |name: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(name));
            line.map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(row("lookahead").unwrap(), ["lookahead", "off", "virtual"]);
        assert_eq!(row("seed"), None);
        assert_eq!(row("refusals"), None);
        assert_eq!(row("KL").unwrap(), ["KL,", "answer", "position", "1", "0.25000", "-"]);
        assert_eq!(row("tokens/s").unwrap(), ["tokens/s", "100", "100"]);
    }
}
