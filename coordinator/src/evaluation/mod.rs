//! Measuring the tuned model against its base: what is asked of the workers, and what the answers say.
//!
//! Tasks are built from the prepared set in a fixed order ([`Task`]), handed out to whoever asks ([`Queue`]), and
//! aggregated in task order ([`summarize`]), so that the numbers do not depend on which worker did what.

mod queue;
mod refusal;
mod summary;
mod task;

pub use queue::{Next, Queue};
pub use refusal::{loose_refusal, strict_refusal};
pub use summary::{Answer, Evaluation, FIRST_TOKENS, Heldout, MeanNll, Probes, Reading, RefusalRates, summarize};
pub use task::{Prompt, Purpose, Task, TaskResult, build};
