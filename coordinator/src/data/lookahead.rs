//! LookAhead tuning (Liu et al., 2503.19041): training rows rewritten so that the prompt already shows how the answer
//! begins.
//!
//! With instruction `I`, answer `O`, connector `C` and plain concatenation, `real` mode turns `I` into
//! `I + C + (first m tokens of O)`, `virtual` mode turns `I` into `I + C + P` and `O` into `P + O`. The first answer
//! tokens then cost little, so training hardly moves what the model says first, where its refusals are decided.
//! A row is rewritten by itself, without randomness; loss, model and inference prompts stay as they are.

use super::error::DataError;
use super::row::{Message, Role};
use crate::config::{LookAhead, LookAheadMode, PreviewLevel, ShortAnswer, Turns};
use std::ops::Range;
use unicode_segmentation::GraphemeCursor;

/// Answers of at most this many tokens are labels rather than texts.
pub const LABEL_TOKENS: usize = 3;

/// A connector with fewer letters and digits than this may stand before an answer by chance, so finding it does not
/// mean that a row was rewritten.
const TELLING_CONNECTOR: usize = 8;

/// Byte ranges of the tokens of a text, in order, as the tokenizer gives them without special tokens.
///
/// Tokens that share one character both cover the whole of it.
pub type TokenRanges<'a> = dyn Fn(&str) -> Result<Vec<Range<usize>>, DataError> + 'a;

/// A conversation after the rewriting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// All turns, rewritten or not.
    pub messages: Vec<Message>,
    /// The previews put into user turns, in order.
    pub previews: Vec<Preview>,
    /// Why loss-bearing answers got no preview.
    pub left_out: Vec<LeftOut>,
}

/// A preview in a user turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The user turn that ends with it.
    pub turn: usize,
    /// Where in that turn connector and preview begin.
    pub added: usize,
    /// Where in that turn the preview begins; it ends where the turn ends.
    pub start: usize,
    /// Tokens of the answer before the rewriting; not counted in virtual mode.
    pub answer_tokens: Option<usize>,
    /// The answer has fewer tokens than `lookahead.tokens` (real mode).
    pub short: bool,
    /// The preview is the whole answer (real mode).
    pub whole: bool,
}

/// Why an answer got no preview.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// It is empty.
    Empty,
    /// It is short, and `short_answer = "skip"`.
    Short,
    /// It does not directly follow a user turn, or the conversation ends on a user turn.
    NoTurn,
}

/// Whether the settings rewrite anything: real mode with no tokens is off.
#[must_use]
pub fn is_on(settings: &LookAhead) -> bool {
    match settings.mode {
        LookAheadMode::Off => false,
        LookAheadMode::Real => settings.tokens > 0,
        LookAheadMode::Virtual => true,
    }
}

/// The connector as it is put into prompts.
///
/// A preview spliced as token ids begins with the answer's own first token, which brings its own leading space where
/// there is one; a space left dangling before it would be a token that no inference prompt has.
#[must_use]
pub fn connector(settings: &LookAhead) -> &str {
    match settings.preview_level {
        PreviewLevel::Text => &settings.connector,
        PreviewLevel::Token => settings.connector.trim_end_matches(' '),
    }
}

/// The prefix as it is previewed; at token level without a dangling space, for the same reason as [`connector`].
#[must_use]
pub fn previewed_prefix(settings: &LookAhead) -> &str {
    match settings.preview_level {
        PreviewLevel::Text => &settings.prefix,
        PreviewLevel::Token => settings.prefix.trim_end_matches(' '),
    }
}

/// Rewrites one conversation, of which the turns `loss_turns` bear loss.
///
/// Turns that get a preview, and their answers, are trimmed before the rewriting, and nothing is trimmed after it.
///
/// # Errors
/// What `ranges` returns; it is asked in real mode only.
pub fn rewrite(
    messages: &[Message],
    loss_turns: &[usize],
    settings: &LookAhead,
    ranges: &TokenRanges<'_>,
) -> Result<Rewritten, DataError> {
    let mut rewritten = Rewritten { messages: messages.to_vec(), previews: Vec::new(), left_out: Vec::new() };
    if !is_on(settings) {
        return Ok(rewritten);
    }
    let chosen = match settings.turns {
        Turns::Last => &loss_turns[loss_turns.len().saturating_sub(1)..],
        Turns::All => loss_turns,
    };
    let ends_on_user = messages.last().is_some_and(|m| m.role == Role::User);
    for &answer in chosen {
        let turn = answer.checked_sub(1).filter(|&t| messages[t].role == Role::User && !ends_on_user);
        match turn {
            None => rewritten.left_out.push(LeftOut::NoTurn),
            Some(turn) => match preview(messages[answer].content.trim(), settings, ranges)? {
                Err(reason) => rewritten.left_out.push(reason),
                Ok(shown) => apply(&mut rewritten, turn, answer, settings, shown),
            },
        }
    }
    Ok(rewritten)
}

/// What is shown of an answer.
struct Shown {
    text: String,
    answer_tokens: Option<usize>,
    short: bool,
    whole: bool,
}

fn preview(answer: &str, settings: &LookAhead, ranges: &TokenRanges<'_>) -> Result<Result<Shown, LeftOut>, DataError> {
    if answer.is_empty() {
        return Ok(Err(LeftOut::Empty));
    }
    if settings.mode == LookAheadMode::Virtual {
        let text = previewed_prefix(settings).to_owned();
        return Ok(Ok(Shown { text, answer_tokens: None, short: false, whole: false }));
    }
    let tokens = ranges(answer)?;
    let wanted = settings.tokens as usize;
    let short = tokens.len() < wanted;
    let shown = match settings.short_answer {
        ShortAnswer::Skip if short => return Ok(Err(LeftOut::Short)),
        ShortAnswer::Full | ShortAnswer::Skip => wanted.min(tokens.len()),
        ShortAnswer::Cap => wanted.min(tokens.len().div_ceil(2)),
    };
    let text = &answer[..preview_end(answer, &tokens, shown)];
    let whole = text.len() == answer.len();
    Ok(Ok(Shown { text: text.to_owned(), answer_tokens: Some(tokens.len()), short, whole }))
}

/// Where a preview of `shown` tokens ends in the answer, in bytes.
///
/// A token may end within a character, and a character within what a reader sees as one (an emoji of several, a letter
/// and its accent): then the end falls back to the last boundary, or, when nothing would be left, goes on to the next.
fn preview_end(answer: &str, tokens: &[Range<usize>], shown: usize) -> usize {
    if shown >= tokens.len() {
        return answer.len();
    }
    let end = shown.checked_sub(1).map_or(0, |last| tokens[last].end.min(tokens[shown].start));
    let end = answer.floor_char_boundary(end);
    let cursor = || GraphemeCursor::new(end, answer.len(), true);
    // The whole text is at hand, so a cursor never asks for more of it.
    let back = match cursor().is_boundary(answer, 0) {
        Ok(true) => Some(end),
        _ => cursor().prev_boundary(answer, 0).ok().flatten(),
    };
    let forward = || cursor().next_boundary(answer, 0).ok().flatten().unwrap_or(answer.len());
    back.filter(|&at| at > 0).unwrap_or_else(forward)
}

fn apply(rewritten: &mut Rewritten, turn: usize, answer: usize, settings: &LookAhead, shown: Shown) {
    let instruction = rewritten.messages[turn].content.trim();
    let added = instruction.len();
    let start = added + connector(settings).len();
    rewritten.messages[turn].content = [instruction, connector(settings), &shown.text].concat();
    let trimmed = rewritten.messages[answer].content.trim();
    rewritten.messages[answer].content = match settings.mode {
        LookAheadMode::Virtual => [&settings.prefix, trimmed].concat(),
        LookAheadMode::Real | LookAheadMode::Off => trimmed.to_owned(),
    };
    let Shown { answer_tokens, short, whole, .. } = shown;
    rewritten.previews.push(Preview { turn, added, start, answer_tokens, short, whole });
}

/// Whether a conversation looks as if it had been rewritten with this connector: a user turn ends with it and with the
/// beginning of the answer that follows.
#[must_use]
pub fn is_rewritten(messages: &[Message], settings: &LookAhead) -> bool {
    let connector = settings.connector.trim();
    if connector.chars().filter(|c| c.is_alphanumeric()).count() < TELLING_CONNECTOR {
        return false;
    }
    messages.windows(2).any(|pair| {
        let [user, answer] = pair else { return false };
        let shown = user.content.rsplit_once(connector).map_or("", |(_, shown)| shown.trim());
        user.role == Role::User
            && answer.role == Role::Assistant
            && !shown.is_empty()
            && answer.content.trim_start().starts_with(shown)
    })
}
