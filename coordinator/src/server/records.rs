//! From a step on which all ranks agree to its record and its metrics; and back, where the ledger goes back.

use super::{blueprint::Blueprint, control::Control, metrics::StepMetrics, progress::RunEvent, recorder::Entry};
use crate::{
    ledger::{SampleSet, Skipped, StepRecord},
    membership::{Commit, Event, SlowWorker},
};
use ballast_proto::{ErrorCode, Failure, v1::NonFinite};
use tokio::time::Instant;

impl Control {
    pub(super) fn rewind(&mut self, to: u64) {
        let voided = self.hashes.split_off(&(to + 1)).len();
        self.in_flight.clear();
        self.metrics.retain(|metrics| metrics.step <= to);
        self.recorder.write(Entry::Rewind { to });
        self.display.warn(format!(
            "no worker holds the newest state: {voided} steps after step {to} are trained again, and each must lead to the \
             same state"
        ));
    }

    pub(super) fn slow(&self, slow: SlowWorker) {
        tracing::warn!(step = slow.step, drained = slow.drained, "{slow}");
        self.display.emit(RunEvent::WorkerSlow {
            worker: slow.worker,
            name: slow.name.clone(),
            step: slow.step,
            ratio: slow.ratio,
            reason: slow.to_string(),
            drained: slow.drained,
        });
        self.recorder.write(Entry::Slow { at_ms: self.site.now_ms(), slow });
    }

    pub(super) fn persist(&mut self, commit: Commit) {
        let Some(planned) = planned(&self.blueprint, &commit) else {
            let message = format!("the plan has a sample twice in step {}", commit.step);
            self.feed(Event::Failed(Failure::new(ErrorCode::Internal, message)));
            return;
        };
        let Planned { data_epoch, samples, skipped } = planned;
        let now = Instant::now();
        let seconds = now.duration_since(std::mem::replace(&mut self.last_step_at, now)).as_secs_f64();
        let metrics = StepMetrics {
            step: commit.step,
            epoch: data_epoch,
            generation: commit.generation.to_string(),
            loss: commit.loss,
            loss_tokens: commit.loss_tokens,
            tokens: commit.tokens,
            grad_norm: commit.grad_norm,
            learning_rate: commit.learning_rate,
            seconds,
            compute_seconds: commit.compute_seconds,
            reduce_seconds: commit.reduce_seconds,
            recomputed: commit.recomputed,
            skipped: skipped.clone(),
        };
        let record = StepRecord {
            step: commit.step,
            data_epoch,
            generation: (commit.generation.epoch, commit.generation.number),
            samples,
            loss: commit.loss,
            loss_tokens: commit.loss_tokens,
            tokens: commit.tokens,
            state_sha256: hex::encode(&commit.state_sha256),
            at_ms: self.site.now_ms(),
            skipped,
        };
        self.hashes.insert(commit.step, commit.state_sha256);
        self.in_flight.insert(commit.step, metrics.clone());
        self.recorder.write(Entry::Step(record, metrics));
    }
}

/// What the plan says about a step that was committed.
struct Planned {
    data_epoch: u64,
    samples: SampleSet,
    skipped: Option<Skipped>,
}

/// `None` when the plan has a sample twice.
fn planned(blueprint: &Blueprint, commit: &Commit) -> Option<Planned> {
    let step = blueprint.step(commit.step)?;
    let plan = &step.plan;
    let of = |which: fn(&NonFinite) -> bool| {
        let batches = commit.not_finite.iter().filter(|m| which(m));
        SampleSet::new(batches.filter_map(|m| plan.micro_batches.get(m.micro_batch as usize)).flatten().copied())
    };
    let skipped = match commit.not_finite.is_empty() {
        true => None,
        false => Some(Skipped { loss: of(|m| m.loss)?, gradient: of(|m| m.gradient)? }),
    };
    Some(Planned {
        data_epoch: plan.epoch,
        skipped,
        samples: SampleSet::new(plan.micro_batches.iter().flatten().copied())?,
    })
}
