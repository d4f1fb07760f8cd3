//! One row to one sample: the stages of the data plane in their order.

use super::error::{DataError, Origin};
use super::lookahead::{self, LeftOut, Preview};
use super::prepared::Probe;
use super::row::{Message, Role, Row, loss_turns};
use super::segment::segments;
use super::template::{ChatTemplate, Turn};
use super::tokenize::{Encoder, Fitted, SPLICE_MARK, Sample, Tokenized, fit};
use crate::config::{LookAhead, LookAheadMode, PreviewLevel, RunFile, Turns};
use std::cell::RefCell;

/// All that turns rows into samples. Shared by the threads that prepare rows.
pub(super) struct Pipeline<'a> {
    run: &'a RunFile,
    template: ChatTemplate,
    encoder: Encoder,
    max_tokens: usize,
    /// Tokens that virtual mode adds for each preview: connector and prefix in the prompt, the prefix in the answer.
    virtual_tokens: usize,
}

/// A training row's sample, and what was met on the way.
pub(super) struct PreparedRow {
    pub(super) sample: Sample,
    /// The rewritten row, as a line of JSON.
    pub(super) json: String,
    pub(super) cut: bool,
    pub(super) preview_tokens: u64,
    pub(super) previews: Vec<Preview>,
    pub(super) left_out: Vec<LeftOut>,
    pub(super) empty_answer: bool,
}

/// What became of a training row.
pub(super) enum Outcome {
    Prepared(Box<PreparedRow>),
    /// Too long, and the policy is to skip.
    Skipped,
    /// Too long, and cutting would leave no loss.
    NothingLeft,
    /// The template does not take it.
    Bad(DataError),
}

/// What became of a held-out row, and its prompt.
pub(super) enum Heldout {
    Scored(Sample, Probe),
    /// Too long: the end of its answer is not scored.
    Cut(Sample, Probe),
    /// Too long.
    LeftOut,
}

impl<'a> Pipeline<'a> {
    pub(super) fn new(
        run: &'a RunFile,
        template: ChatTemplate,
        encoder: Encoder,
        max_tokens: usize,
    ) -> Result<Self, DataError> {
        let shown = [lookahead::connector(&run.lookahead), lookahead::previewed_prefix(&run.lookahead)].concat();
        let virtual_tokens = encoder.count(&shown)? + encoder.count(&run.lookahead.prefix)?;
        Ok(Self { run, template, encoder, max_tokens, virtual_tokens })
    }

    /// Prepares a training row.
    pub(super) fn training(&self, mut row: Row) -> Result<Outcome, DataError> {
        let settings = &self.run.lookahead;
        self.add_system(&mut row.messages);
        if lookahead::is_on(settings) && lookahead::is_rewritten(&row.messages, settings) {
            return Err(rewritten_before(&row.origin, settings));
        }
        let turns = loss_turns(&row.messages, self.run.data.train_turns);
        let empty_answer = turns.iter().any(|&t| row.messages[t].content.trim().is_empty());
        let known = RefCell::new(Vec::new());
        let ranges = |text: &str| {
            let answer = self.encoder.alone(text)?;
            let ranges = answer.ranges.clone();
            known.borrow_mut().push(answer);
            Ok(ranges)
        };
        let rewritten = lookahead::rewrite(&row.messages, &turns, settings, &ranges)?;
        row.messages = rewritten.messages;
        let sample = match self.sample(&row.messages, &turns, &rewritten.previews, &known.into_inner()) {
            Ok(sample) => sample,
            Err(error) => return located(error, &row.origin).map(Outcome::Bad),
        };
        let (sample, cut) = match self.fit(sample, &row.origin)? {
            Fitted::Whole(sample) => (sample, false),
            Fitted::Cut(sample) => (sample, true),
            Fitted::NothingLeft => return Ok(Outcome::NothingLeft),
            Fitted::Skipped => return Ok(Outcome::Skipped),
        };
        Ok(Outcome::Prepared(Box::new(PreparedRow {
            sample,
            json: row.to_json().to_string(),
            cut,
            preview_tokens: self.preview_tokens(&row.messages, &rewritten.previews)?,
            previews: rewritten.previews,
            left_out: rewritten.left_out,
            empty_answer,
        })))
    }

    /// Prepares a held-out row: never rewritten, its last answer scored.
    pub(super) fn heldout(&self, mut row: Row) -> Result<Result<Heldout, DataError>, DataError> {
        self.add_system(&mut row.messages);
        let turns = loss_turns(&row.messages, Turns::Last);
        let sample = match self.sample(&row.messages, &turns, &[], &[]) {
            Ok(sample) => sample,
            Err(error) => return located(error, &row.origin).map(Err),
        };
        let probe = Probe { text: question(&row.messages[..turns[0]]), ids: sample.prompt().to_vec() };
        Ok(Ok(match self.fit(sample, &row.origin)? {
            Fitted::Whole(sample) => Heldout::Scored(sample, probe),
            Fitted::Cut(sample) => Heldout::Cut(sample, probe),
            Fitted::Skipped | Fitted::NothingLeft => Heldout::LeftOut,
        }))
    }

    /// Prepares a probe: never rewritten, to be answered.
    pub(super) fn probe(&self, mut row: Row) -> Result<Result<Probe, DataError>, DataError> {
        self.add_system(&mut row.messages);
        let turns: Vec<Turn> = row.messages.iter().map(Turn::from).collect();
        let ids = match self.template.render(&turns, true).and_then(|text| self.encoder.prompt_only(&text)) {
            Ok(ids) => ids,
            Err(error) => return located(error, &row.origin).map(Err),
        };
        if ids.len() > self.max_tokens {
            return Err(DataError::PromptTooLong {
                origin: row.origin,
                tokens: ids.len(),
                max_tokens: self.max_tokens,
            });
        }
        Ok(Ok(Probe { text: question(&row.messages), ids }))
    }

    fn add_system(&self, messages: &mut Vec<Message>) {
        if let Some(system) = &self.run.data.system
            && messages.iter().all(|m| m.role != Role::System)
        {
            messages.insert(0, Message::new(Role::System, system));
        }
    }

    /// Tokenizes a conversation. `known` are answers that were tokenized for their previews.
    fn sample(
        &self,
        messages: &[Message],
        turns: &[usize],
        previews: &[Preview],
        known: &[Tokenized],
    ) -> Result<Sample, DataError> {
        if self.run.lookahead.preview_level == PreviewLevel::Text || previews.is_empty() {
            return self.encoder.sample(&segments(&self.template, messages, turns)?, &[], known);
        }
        let mut marked = messages.to_vec();
        let mut spliced = vec![""; turns.len()];
        for preview in previews {
            marked[preview.turn].content.truncate(preview.start);
            marked[preview.turn].content.push(SPLICE_MARK);
            if let Some(index) = turns.iter().position(|&t| t == preview.turn + 1) {
                spliced[index] = &messages[preview.turn].content[preview.start..];
            }
        }
        self.encoder.sample(&segments(&self.template, &marked, turns)?, &spliced, &[])
    }

    fn fit(&self, sample: Sample, origin: &Origin) -> Result<Fitted, DataError> {
        let max_tokens = self.max_tokens;
        fit(sample, max_tokens, self.run.data.on_too_long).map_err(|tokens| DataError::TooLong {
            origin: origin.clone(),
            tokens,
            max_tokens,
        })
    }

    fn preview_tokens(&self, messages: &[Message], previews: &[Preview]) -> Result<u64, DataError> {
        let tokens: usize = match self.run.lookahead.mode {
            LookAheadMode::Virtual => previews.len() * self.virtual_tokens,
            LookAheadMode::Real | LookAheadMode::Off => previews
                .iter()
                .map(|preview| self.encoder.count(&messages[preview.turn].content[preview.added..]))
                .sum::<Result<_, _>>()?,
        };
        Ok(tokens as u64)
    }
}

/// The last user turn, as a person knows the prompt.
fn question(messages: &[Message]) -> String {
    messages.iter().rfind(|m| m.role == Role::User).map_or_else(String::new, |m| m.content.clone())
}

/// The error with the row it was met in: `Ok` when the row is to blame, `Err` when the tokenizer is.
fn located(error: DataError, origin: &Origin) -> Result<DataError, DataError> {
    match error {
        DataError::Template(problem) => Ok(DataError::Template(format!("{origin}: {problem}"))),
        other => Err(other),
    }
}

fn rewritten_before(origin: &Origin, settings: &LookAhead) -> DataError {
    let connector = settings.connector.trim();
    DataError::LookAheadTwice(format!(
        "{origin}: a user turn already ends with `{connector}` and the beginning of the answer, so the rows were rewritten \
         before; take the original rows, or set lookahead.mode = \"off\""
    ))
}
