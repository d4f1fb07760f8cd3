//! A row, whatever its shape in the file: a conversation.

use super::error::Origin;
use crate::config::Turns;
use serde_json::{Map, Value, json};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates know it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }

    /// The role of this name in OpenAI's, ShareGPT's or a chat template's vocabulary.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "system" | "developer" => Some(Self::System),
            "user" | "human" => Some(Self::User),
            "assistant" | "gpt" | "model" => Some(Self::Assistant),
            _ => None,
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// How rows of a file are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A list of turns.
    Turns {
        /// Field of the list: `messages` or `conversations`.
        list: String,
        /// Field of a turn that holds the role: `role` or `from`.
        role: String,
        /// Field of a turn that holds the text: `content` or `value`.
        text: String,
    },
    /// `instruction`, `input` (may be missing), `output`.
    Alpaca,
    /// A field with the prompt and one with the answer.
    Pair {
        /// Field of the prompt.
        prompt: String,
        /// Field of the answer.
        answer: String,
    },
}

/// A row as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where it stands.
    pub origin: Origin,
    /// How it was written.
    pub shape: Shape,
    /// What it says.
    pub messages: Vec<Message>,
}

impl Row {
    /// The row as an object of its own shape, after its turns were rewritten.
    ///
    /// An Alpaca row's `input` was joined to its `instruction` on reading and stays there.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let text_of = |role| self.messages.iter().find(|m| m.role == role).map_or("", |m| m.content.as_str());
        let (prompt, answer) = (text_of(Role::User), text_of(Role::Assistant));
        match &self.shape {
            Shape::Turns { list, role, text } => {
                let turn = |m: &Message| {
                    let name = spelling(role, m.role);
                    Value::Object(Map::from_iter([(role.clone(), json!(name)), (text.clone(), json!(m.content))]))
                };
                Value::Object(Map::from_iter([(list.clone(), self.messages.iter().map(turn).collect())]))
            }
            Shape::Alpaca => json!({ "instruction": prompt, "input": "", "output": answer }),
            Shape::Pair { prompt: prompt_field, answer: answer_field } => Value::Object(Map::from_iter([
                (prompt_field.clone(), json!(prompt)),
                (answer_field.clone(), json!(answer)),
            ])),
        }
    }
}

/// A role's name, in the vocabulary that goes with the field it stands in.
fn spelling(field: &str, role: Role) -> &'static str {
    match (field, role) {
        ("from", Role::User) => "human",
        ("from", Role::Assistant) => "gpt",
        _ => role.name(),
    }
}

/// The assistant turns that bear loss, as ascending indices.
#[must_use]
pub fn loss_turns(messages: &[Message], which: Turns) -> Vec<usize> {
    let mut turns: Vec<usize> = (0..messages.len()).filter(|&i| messages[i].role == Role::Assistant).collect();
    if which == Turns::Last {
        turns.drain(..turns.len().saturating_sub(1));
    }
    turns
}
