//! Steps that went by without an update, because a loss or a gradient was not finite: which reports tell of one in earnest, and how
//! many in succession a run bears.

use super::{Effect, State, StepTotals};
use ballast_proto::{ErrorCode, Failure, v1::StepReport};

impl StepTotals {
    /// Whether a report counts the tokens that the plan has, and names micro-batches of it.
    pub(super) fn agree(&self, report: &StepReport) -> bool {
        let named = &report.not_finite;
        let ascending = named.is_sorted_by(|a, b| a.micro_batch < b.micro_batch);
        let planned = |batch: u32| batch < self.micro_batches;
        // The loss is that of the micro-batches where it is finite.
        let counted = match named.iter().any(|m| m.loss) {
            true => report.loss_tokens < self.loss_tokens,
            false => report.loss_tokens == self.loss_tokens,
        };
        let told = named.iter().all(|m| planned(m.micro_batch) && (m.loss || m.gradient));
        self.tokens == report.tokens && counted && ascending && told
    }
}

impl State {
    /// Takes note of a step that was recorded, skipped or not; whether the run bears it. A model that has diverged skips every step.
    pub(super) fn bear_skipped(&mut self, step: u64, skipped: bool, out: &mut Vec<Effect>) -> bool {
        let Some(most) = self.settings.max_skipped.filter(|_| skipped) else { return true };
        self.skipped.insert(step);
        // Nothing before the newest checkpoint is trained again.
        let kept = self.checkpoint.unwrap_or(0).saturating_sub(most);
        self.skipped = self.skipped.split_off(&kept);
        let in_succession = (0..step).take_while(|back| self.skipped.contains(&(step - back))).count() as u64;
        if in_succession < most {
            return true;
        }
        let first = step + 1 - in_succession;
        let message = format!(
            "loss or gradient was not finite in any of the steps {first} to {step}, which were skipped (train.max_skipped is \
             {most}): lower train.learning_rate, or look at the samples that `ballast audit` names"
        );
        self.fail(Failure::new(ErrorCode::NonFinite, message), out);
        false
    }
}
