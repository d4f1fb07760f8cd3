//! What happens in a run, as a person or a program sees it: a bar on a terminal, lines elsewhere, or JSON.

use crate::args::LogFormat;
use crate::bars;
use crate::screen::Screen;
use ballast_coordinator::server::{Progress, RunEvent};
use indicatif::ProgressBar;
use std::time::Duration;

/// Shows the events of one run.
#[derive(Debug)]
pub(crate) struct Presenter {
    screen: Screen,
    /// Steps between lines where there is no terminal.
    log_every: u64,
    bar: Option<ProgressBar>,
}

impl Presenter {
    /// Nothing shown yet.
    pub(crate) fn new(screen: Screen, log_every: u64) -> Self {
        Self { screen, log_every, bar: None }
    }

    /// Shows an event; `at` is where the run stands.
    pub(crate) fn show(&mut self, event: &RunEvent, at: &Progress) {
        match (self.screen.format(), event) {
            (LogFormat::Json, _) => self.screen.json(event),
            (LogFormat::Text, RunEvent::Step { step, total_steps, .. }) => self.step(event, *step, *total_steps, at),
            (LogFormat::Text, RunEvent::Evaluation { done, total }) => self.evaluation(*done as u64, *total as u64),
            (LogFormat::Text, event) => {
                if let Some(line) = line(event) {
                    self.screen.line(&line);
                }
            }
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn step(&mut self, event: &RunEvent, step: u64, total: u64, at: &Progress) {
        let text = [step_text(event), pace_text(step, total, at)].join("  ");
        if self.screen.is_terminal() {
            let bar = self.bar("training", total);
            bar.set_position(step);
            bar.set_message(text);
        } else if step.is_multiple_of(self.log_every) || step == total {
            self.screen.line(&format!("step {step}/{total}  {text}"));
        }
    }

    fn evaluation(&mut self, done: u64, total: u64) {
        if self.screen.is_terminal() {
            self.bar("evaluating", total).set_position(done);
        } else if done == total || done * 10 / total.max(1) != done.saturating_sub(1) * 10 / total.max(1) {
            self.screen.line(&format!("evaluation {done}/{total}"));
        }
    }

    /// The bar of this activity; a new one when the activity changes.
    fn bar(&mut self, what: &'static str, length: u64) -> &ProgressBar {
        if self.bar.as_ref().is_some_and(|bar| bar.prefix() != what) {
            self.finish();
        }
        self.bar.get_or_insert_with(|| bars::bar(&self.screen, what, length))
    }
}

/// Loss and what else a step tells.
fn step_text(event: &RunEvent) -> String {
    let RunEvent::Step { loss, grad_norm, learning_rate, recomputed, skipped, .. } = event else {
        return String::new();
    };
    if *skipped {
        return format!("skipped  lr {learning_rate:.2e}");
    }
    let again = if *recomputed > 0 { format!("  recomputed {recomputed}x") } else { String::new() };
    format!("loss {loss:.4}  grad {grad_norm:.3}  lr {learning_rate:.2e}{again}")
}

/// Speed, time left, workers.
fn pace_text(step: u64, total: u64, at: &Progress) -> String {
    let mut parts = Vec::new();
    if let Some(tokens) = at.tokens_per_second {
        parts.push(format!("{tokens:.0} tokens/s"));
    }
    if let Some(seconds) = at.seconds_per_step {
        let left = Duration::from_secs_f64((seconds * total.saturating_sub(step) as f64).clamp(0.0, 1e9));
        parts.push(format!("ETA {}", human(left)));
    }
    let workers = at.workers.iter().filter(|worker| worker.rank.is_some()).count();
    parts.push(format!("{workers} {}", if workers == 1 { "worker" } else { "workers" }));
    parts.join("  ")
}

/// A duration to the second.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

/// An event that is not progress, in a line.
fn line(event: &RunEvent) -> Option<String> {
    Some(match event {
        RunEvent::Listening { address, tls: false } => format!("listening on http://{address}"),
        RunEvent::Listening { address, tls: true } => format!("listening on https://{address}"),
        RunEvent::WorkerJoined { worker, name } => format!("worker {worker} ({name}) joined"),
        RunEvent::WorkerReady { worker, name, ready, wanted } => {
            format!("worker {worker} ({name}) is ready: {ready} of {wanted}")
        }
        RunEvent::GenerationFormed { generation, world_size, start_step } => {
            format!("generation {generation}: {world_size} in the world, {start_step} steps done")
        }
        RunEvent::Checkpoint { step, path } => format!("checkpoint of step {step}: {}", path.display()),
        RunEvent::WorkerLost { worker, name, reason } => format!("worker {worker} ({name}) is lost: {reason}"),
        RunEvent::Waiting { reason } => format!("waiting: {reason}"),
        RunEvent::StepSkipped { step, skipped } => format!("warning: step {step} was skipped: {skipped}"),
        RunEvent::WorkerSlow { reason, drained: true, .. } => format!("warning: {reason}; it is asked to leave"),
        RunEvent::WorkerSlow { reason, .. } => format!("warning: {reason}"),
        RunEvent::Warning { message } => format!("warning: {message}"),
        RunEvent::Stopping { reason } => format!("stopping: {reason}"),
        // A warning comes with it.
        RunEvent::CheckpointFailed { .. } | RunEvent::Step { .. } | RunEvent::Evaluation { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let of = |seconds| human(Duration::from_secs(seconds));
        assert_eq!((of(9), of(75), of(3700)), ("9s".into(), "1m15s".into(), "1h01m".into()));
    }

    #[test]
    fn a_step_says_loss_speed_and_time_left() {
        let event = RunEvent::Step {
            step: 2,
            total_steps: 10,
            loss: 1.23456,
            loss_tokens: 5,
            tokens: 9,
            grad_norm: 0.5,
            learning_rate: 2e-4,
            seconds: 1.0,
            recomputed: 0,
            skipped: false,
        };
        assert_eq!(step_text(&event), "loss 1.2346  grad 0.500  lr 2.00e-4");
        let at = Progress { tokens_per_second: Some(129.6), seconds_per_step: Some(10.0), ..Progress::default() };
        assert_eq!(pace_text(2, 10, &at), "130 tokens/s  ETA 1m20s  0 workers");
    }
}
