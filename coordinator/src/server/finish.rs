//! The last files of a run: the adapter and the report.

use super::{blueprint::Blueprint, control::Ended, display::Display, metrics::StepMetrics};
use crate::{
    checkpoint::{self, FinalAdapter, LocalStore, StateRecord, Store},
    config::LookAheadMode,
    evaluation::{Queue, Reading, summarize},
    json,
    ledger::{Ledger, Span, StepRecord},
    membership::MemberStatus,
    report::{self, Report},
    site::Site,
};
use ballast_proto::{ErrorCode, Failure, exit};
use serde_json::{Map, Value};
use std::{path::PathBuf, sync::Arc};

/// How a run ended, for whoever started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOutcome {
    /// Exit code for the process.
    pub exit_code: u8,
    /// One sentence.
    pub reason: String,
    /// What ended it early.
    pub failure: Option<Failure>,
    /// The final adapter.
    pub adapter: Option<PathBuf>,
    /// The report.
    pub report: Option<PathBuf>,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
}

/// What the last files are made from.
pub(super) struct Conclusion {
    pub(super) blueprint: Arc<Blueprint>,
    pub(super) store: Arc<dyn Store>,
    pub(super) files: Arc<LocalStore>,
    pub(super) run_directory: PathBuf,
    pub(super) site: Site,
    pub(super) ended: Ended,
    pub(super) total_seconds: f64,
}

impl Conclusion {
    /// Writes adapter and report, when everything else is written.
    pub(super) async fn write(self) -> RunOutcome {
        let outcome = self.ended.outcome.clone();
        let done = RunOutcome {
            exit_code: outcome.exit_code,
            reason: outcome.reason,
            failure: outcome.failure,
            adapter: None,
            report: None,
            checkpoint: None,
        };
        let Self { blueprint, store, files, run_directory, site, ended, total_seconds } = self;
        let Ended { recorder, queue, display, workers, metrics, .. } = ended;
        let ledger = match recorder.finish().await {
            Ok(ledger) => ledger,
            Err(failure) => return ended_with(done, Err(failure)),
        };
        let last = Files { blueprint, store, files, run_directory, total_seconds, queue, display, workers, metrics };
        let (outcome, now_ms) = (done.clone(), site.now_ms());
        let written = site.blocking.run(move || last.conclude(outcome, ledger, now_ms)).await;
        written.unwrap_or_else(|failure| ended_with(done, Err(failure)))
    }
}

/// How the run ended, given what became of its last files.
fn ended_with(done: RunOutcome, written: Result<RunOutcome, Failure>) -> RunOutcome {
    match written {
        Ok(outcome) => outcome,
        // A failure to write the last files matters only if nothing worse happened before.
        Err(failure) if done.exit_code == exit::DONE => RunOutcome {
            exit_code: failure.code.exit_code(),
            reason: failure.message.clone(),
            failure: Some(failure),
            ..done
        },
        Err(failure) => {
            tracing::error!(code = failure.code.as_str(), "{failure}");
            done
        }
    }
}

/// What the last files are made from, beside the ledger.
struct Files {
    blueprint: Arc<Blueprint>,
    store: Arc<dyn Store>,
    files: Arc<LocalStore>,
    run_directory: PathBuf,
    total_seconds: f64,
    queue: Queue,
    display: Display,
    workers: Vec<MemberStatus>,
    metrics: Vec<StepMetrics>,
}

impl Files {
    /// Writes all of it, and into the ledger how the run ended. Blocks.
    fn conclude(self, done: RunOutcome, mut ledger: Ledger, now_ms: u64) -> RunOutcome {
        let outcome = ended_with(done.clone(), self.write(&done, &ledger));
        // How it ended is known now, whatever became of the last files.
        let code = outcome.failure.as_ref().map(|failure| failure.code);
        if let Err(error) = ledger.end(now_ms, code, &outcome.reason) {
            tracing::error!(%error, "the ledger does not tell how the run ended");
        }
        outcome
    }

    fn write(self, outcome: &RunOutcome, ledger: &Ledger) -> Result<RunOutcome, Failure> {
        let Self { blueprint, store, files, run_directory, total_seconds, queue, display, workers, metrics } = self;
        let evaluation_seconds = display.evaluation_time().map(|t| t.as_secs_f64());
        let exactly_once = ledger.verify(blueprint.data.samples.len() as u64)?;
        let accept = |state: &StateRecord| match ledger.step(state.step) {
            Some(step) if step.state_sha256 == state.state_sha256 => Ok(()),
            _ => Err("the ledger does not know it".to_owned()),
        };
        let finished = outcome.exit_code == exit::DONE;
        let (newest, passed_over) = checkpoint::newest(&*store, &blueprint.shapes, &accept)?;
        passed_over.into_iter().for_each(|warning| display.warn(warning));
        let adapter = match &newest {
            // An evaluation that failed costs the evaluation, not the adapter.
            Some(c) if (finished || ledger.head() == blueprint.total_steps) && c.state.step == ledger.head() => {
                checkpoint::fence(&*store, ledger.epoch())?;
                if store.place() != files.place() {
                    checkpoint::publish_adapter(&*store, &c.adapter, &blueprint.adapter_config)?;
                }
                Some(checkpoint::publish_adapter(&*files, &c.adapter, &blueprint.adapter_config)?)
            }
            // An older adapter would pass for the result.
            _ if finished => {
                let step = ledger.head();
                let message =
                    format!("the checkpoint of the last step ({step}) does not verify: no adapter is published");
                return Err(Failure::new(ErrorCode::CheckpointCorrupt, message));
            }
            _ => None,
        };
        let prefix =
            (blueprint.run.lookahead.mode == LookAheadMode::Virtual).then_some(&*blueprint.run.lookahead.prefix);
        let evaluation = (queue.is_done() && queue.progress().1 > 0)
            .then(|| summarize(queue.results(), &Reading { decode: &*blueprint.model.decode, prefix }));
        let report = Report {
            format: Report::FORMAT,
            run: blueprint.run.run.name.clone(),
            finished,
            outcome: outcome.reason.clone(),
            error_code: outcome.failure.as_ref().map(|f| f.code.to_string()),
            steps: ledger.head(),
            total_steps: blueprint.total_steps,
            settings: settings(&blueprint),
            inputs: report::Inputs {
                model_sha256: blueprint.model.sha256.clone(),
                data_sha256: blueprint.data.sha256.clone(),
                samples: blueprint.data.samples.len() as u64,
                binary_sha256: blueprint.binary_sha256.clone(),
            },
            data: blueprint.data.stats.clone(),
            losses: ledger.steps().filter(|s| s.skipped.is_none()).map(|s| s.loss).collect(),
            skipped: ledger.steps().filter_map(skipped).collect(),
            throughput: throughput(ledger, &metrics, total_seconds, evaluation_seconds),
            workers: workers.into_iter().filter_map(|m| Some(report::Worker { rank: m.rank?, name: m.name })).collect(),
            exactly_once,
            checkpoints: display.checkpoints(),
            generations: Span::all(ledger.steps()),
            evaluation,
            adapter: adapter.as_ref().map(|FinalAdapter { directory, sha256 }| report::Adapter {
                path: (*directory).to_owned(),
                sha256: sha256.clone(),
            }),
            warnings: display.warnings(),
        };
        files.put(report::REPORT, &json::file(&report))?;
        Ok(RunOutcome {
            adapter: adapter.map(|a| run_directory.join(a.directory)),
            report: Some(run_directory.join(report::REPORT)),
            checkpoint: newest.map(|c| checkpoint::locate(&*store, &c.directory)),
            ..outcome.clone()
        })
    }
}

fn skipped(step: &StepRecord) -> Option<report::SkippedStep> {
    Some(report::SkippedStep { step: step.step, skipped: step.skipped.clone()? })
}

/// The run file as it is in effect, but for what only says where things are and how they are shown.
fn settings(blueprint: &Blueprint) -> Map<String, Value> {
    let Value::Object(sections) = json::value(&blueprint.run) else { return Map::new() };
    let shaping = |name: &str| {
        ["run.seed", "model.", "lora.", "data.", "lookahead.", "train.", "eval."]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    let keys = sections.into_iter().flat_map(|(section, keys)| match keys {
        Value::Object(keys) => keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)).collect(),
        _ => Vec::new(),
    });
    keys.filter(|(name, _)| shaping(name) && name != "data.cache_dir").collect()
}

fn throughput(
    ledger: &Ledger,
    metrics: &[StepMetrics],
    total_seconds: f64,
    evaluation_seconds: Option<f64>,
) -> report::Throughput {
    let mut seconds: Vec<f64> = metrics.iter().map(|m| m.seconds).collect();
    seconds.sort_unstable_by(f64::total_cmp);
    let training_seconds: f64 = seconds.iter().sum();
    // Of the same steps as the seconds: metrics of some may be lost.
    let timed_tokens: u64 = metrics.iter().map(|m| m.tokens).sum();
    report::Throughput {
        tokens: ledger.steps().map(|s| s.tokens).sum(),
        training_seconds,
        tokens_per_second: (training_seconds > 0.0).then(|| timed_tokens as f64 / training_seconds),
        median_step_seconds: seconds.get(seconds.len() / 2).copied(),
        evaluation_seconds,
        total_seconds,
    }
}
