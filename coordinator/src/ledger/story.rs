//! What a ledger tells of a run, in its order: what each coordinator did, and the spans that its generations trained.

use super::{Skipped, StepRecord};
use serde::{Deserialize, Serialize};

/// What one coordinator did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chapter {
    /// Its epoch.
    pub epoch: u64,
    /// The newest step when it began.
    pub from: u64,
    /// Steps that had to be voided under it.
    pub voided: u64,
    /// What happened, in order.
    pub events: Vec<Happening>,
    /// How it ended; `None` when its process ended without a word.
    pub ending: Option<String>,
    /// Code of the failure that it ended with.
    pub code: Option<String>,
    #[serde(skip)]
    pub(super) started_ms: u64,
    #[serde(skip)]
    pub(super) ended_ms: Option<u64>,
}

impl Chapter {
    /// Takes a committed step into its story.
    pub(super) fn add(&mut self, step: &StepRecord) {
        if let Some(skipped) = step.skipped.clone() {
            self.events.push(Happening::Skipped { step: step.step, skipped });
            return;
        }
        let goes_on = match self.events.last_mut() {
            Some(Happening::Trained(span)) => span.takes(step),
            _ => false,
        };
        if !goes_on {
            self.events.push(Happening::Trained(Span::new(step)));
        }
    }
}

/// Something that a ledger tells of a coordinator.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// A generation committed steps, whether they still count or not.
    Trained(Span),
    /// A step was committed without its update.
    Skipped {
        /// The step.
        step: u64,
        /// Why.
        #[serde(flatten)]
        skipped: Skipped,
    },
    /// A worker held the others up.
    SlowWorker {
        /// Its name.
        worker: String,
        /// The newest step that it was judged by.
        step: u64,
        /// Its seconds a token, in times of the others' median.
        ratio: f64,
        /// Whether it was asked to leave.
        drained: bool,
    },
    /// Nobody had the newest state any more: later steps are void.
    WentBack {
        /// Newest step that still counted.
        to: u64,
        /// Steps that were voided.
        voided: u64,
    },
}

/// Steps in succession that one generation committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// `epoch.number`.
    pub generation: String,
    /// Its first step.
    pub first_step: u64,
    /// Its last step.
    pub last_step: u64,
}

impl Span {
    /// The spans of steps in their order.
    pub fn all<'a>(steps: impl IntoIterator<Item = &'a StepRecord>) -> Vec<Self> {
        let mut spans: Vec<Self> = Vec::new();
        for step in steps {
            if !spans.last_mut().is_some_and(|span| span.takes(step)) {
                spans.push(Self::new(step));
            }
        }
        spans
    }

    fn new(step: &StepRecord) -> Self {
        Self { generation: generation(step), first_step: step.step, last_step: step.step }
    }

    /// Grows by a step if it is of the same generation; whether it is.
    fn takes(&mut self, step: &StepRecord) -> bool {
        let same = self.generation == generation(step);
        if same {
            self.last_step = step.step;
        }
        same
    }
}

fn generation(step: &StepRecord) -> String {
    format!("{}.{}", step.generation.0, step.generation.1)
}
