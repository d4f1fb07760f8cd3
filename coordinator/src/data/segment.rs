//! A conversation cut at the boundaries where the model begins to answer.

use super::error::DataError;
use super::row::Message;
use super::template::{ChatTemplate, Turn};

/// A stretch of a rendered conversation, tokenized by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether its tokens bear loss: an answer with all that the template renders for its turn.
    pub loss: bool,
}

/// Cuts a conversation into prompts and answers, in turn, ending with the last answer that bears loss.
///
/// A prompt is what the template renders of the turns before an answer, with the header of the answer: the text that
/// the model is given at inference. The answer is what the template adds when the answer's turn is rendered too.
/// Because the boundary does not depend on the answer, training and inference see the same prompt tokens.
///
/// # Errors
/// [`DataError::Template`] when the template refuses the conversation, or when what it renders of more turns does not
/// begin with what it renders of fewer.
pub fn segments(
    template: &ChatTemplate,
    messages: &[Message],
    loss_turns: &[usize],
) -> Result<Vec<Segment>, DataError> {
    let turns: Vec<Turn> = messages.iter().map(Turn::from).collect();
    let mut segments = Vec::with_capacity(2 * loss_turns.len());
    let mut done = String::new();
    for &answer in loss_turns {
        let prompt = template.render(&turns[..answer], true)?;
        let whole = template.render(&turns[..=answer], false)?;
        segments.push(Segment { text: rest(template, &prompt, &done)?.to_owned(), loss: false });
        segments.push(Segment { text: rest(template, &whole, &prompt)?.to_owned(), loss: true });
        done = whole;
    }
    Ok(segments)
}

/// What `whole` adds to `start`.
fn rest<'a>(template: &ChatTemplate, whole: &'a str, start: &str) -> Result<&'a str, DataError> {
    whole.strip_prefix(start).ok_or_else(|| {
        let same = whole.chars().zip(start.chars()).take_while(|(a, b)| a == b).count();
        let at = |text: &str| text.chars().skip(same).take(30).collect::<String>();
        DataError::Template(format!(
            "{} renders the turns before an answer differently once the answer follows (from character {same}: {:?}, then \
             {:?}), so prompt and answer cannot be told apart; choose another data.template",
            template.name(),
            at(start),
            at(whole)
        ))
    })
}
