//! The shapes of rows: which fields hold what, and what can be wrong with them.

use super::{Purpose, SourceSettings};
use crate::config::RowFormat;
use crate::data::row::{Message, Role, Shape};
use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// The shape of a file's rows: as the run file says, or by the fields of its first row.
///
/// # Errors
/// With `auto`, what was seen when it is none of the known shapes.
pub fn detect(row: &Object, settings: SourceSettings<'_>, purpose: Purpose) -> Result<Shape, String> {
    match settings.format {
        RowFormat::Messages => Ok(turns("messages", "role", "content")),
        RowFormat::Sharegpt => Ok(turns("conversations", "from", "value")),
        RowFormat::Alpaca => Ok(Shape::Alpaca),
        RowFormat::PromptCompletion => Ok(pair("prompt", "completion")),
        RowFormat::Fields => match (settings.prompt_field, settings.answer_field) {
            (Some(prompt), Some(answer)) => Ok(pair(prompt, answer)),
            _ => Err("data.format = \"fields\" needs data.prompt_field and data.answer_field".into()),
        },
        RowFormat::Auto => by_fields(row, settings, purpose),
    }
}

fn by_fields(row: &Object, settings: SourceSettings<'_>, purpose: Purpose) -> Result<Shape, String> {
    let has = |field: &str| row.contains_key(field);
    let answered = |field: &str| purpose == Purpose::Prompts || has(field);
    if let (Some(prompt), Some(answer)) = (settings.prompt_field, settings.answer_field)
        && has(prompt)
        && answered(answer)
    {
        return Ok(pair(prompt, answer));
    }
    if let Some(list) = ["messages", "conversations"].into_iter().find(|list| has(list)) {
        let first = row[list].as_array().and_then(|turns| turns.first());
        let spoken_by_from = first.is_some_and(|turn| turn.get("from").is_some());
        return Ok(if spoken_by_from { turns(list, "from", "value") } else { turns(list, "role", "content") });
    }
    if has("instruction") && answered("output") {
        return Ok(Shape::Alpaca);
    }
    if has("prompt") && answered("completion") {
        return Ok(pair("prompt", "completion"));
    }
    let seen = fields(row);
    Err(format!(
        "cannot tell the shape of the rows by the first one, which has {seen}; known are `messages`, \
         `conversations`, `instruction` and `output`, `prompt` and `completion`; for others set data.format = \"fields\" \
         with data.prompt_field and data.answer_field"
    ))
}

fn turns(list: &str, role: &str, text: &str) -> Shape {
    Shape::Turns { list: list.into(), role: role.into(), text: text.into() }
}

fn pair(prompt: &str, answer: &str) -> Shape {
    Shape::Pair { prompt: prompt.into(), answer: answer.into() }
}

/// What a row says; the error names the field.
pub(super) fn messages(row: &Object, shape: &Shape, purpose: Purpose) -> Result<Vec<Message>, String> {
    let mut messages = match shape {
        Shape::Turns { list, role, text } => conversation(row, list, role, text)?,
        Shape::Alpaca => pair_messages(alpaca_prompt(row)?, row, "output", purpose)?,
        Shape::Pair { prompt, answer } => pair_messages(string(row, prompt)?.to_owned(), row, answer, purpose)?,
    };
    let first_user = messages.iter().position(|m| m.role == Role::User).ok_or("the conversation has no user turn")?;
    match purpose {
        Purpose::Answers => {
            let last_answer = messages.iter().rposition(|m| m.role == Role::Assistant);
            if last_answer.is_none_or(|answer| answer < first_user) {
                return Err("the conversation has no assistant turn after a user turn".into());
            }
        }
        Purpose::Prompts => {
            let end = messages.iter().rposition(|m| m.role == Role::User).map_or(0, |last| last + 1);
            messages.truncate(end);
        }
    }
    Ok(messages)
}

/// Alpaca's instruction, with the input it is about on the following lines.
fn alpaca_prompt(row: &Object) -> Result<String, String> {
    let instruction = string(row, "instruction")?;
    let input = match row.get("input") {
        None | Some(Value::Null) => "",
        Some(_) => string(row, "input")?,
    };
    Ok(if input.is_empty() { instruction.to_owned() } else { format!("{instruction}\n{input}") })
}

fn pair_messages(prompt: String, row: &Object, answer: &str, purpose: Purpose) -> Result<Vec<Message>, String> {
    let mut messages = vec![Message::new(Role::User, prompt)];
    if purpose == Purpose::Answers {
        messages.push(Message::new(Role::Assistant, string(row, answer)?));
    }
    Ok(messages)
}

fn conversation(row: &Object, list: &str, role: &str, text: &str) -> Result<Vec<Message>, String> {
    let turns = match row.get(list) {
        Some(Value::Array(turns)) => turns,
        Some(other) => return Err(format!("field `{list}` is {}, not an array", kind(other))),
        None => return Err(missing(row, list)),
    };
    turns
        .iter()
        .enumerate()
        .map(|(index, value)| turn(value, role, text).map_err(|e| format!("`{list}[{index}]`: {e}")))
        .collect()
}

fn turn(value: &Value, role: &str, text: &str) -> Result<Message, String> {
    let Value::Object(turn) = value else {
        return Err(format!("the turn is {}, not an object", kind(value)));
    };
    let name = string(turn, role)?;
    let speaker = Role::from_name(name).ok_or_else(|| {
        let name = shorten(name);
        format!("field `{role}` is `{name}`; known are system, developer, user, human, assistant, gpt and model")
    })?;
    let content = match turn.get(text) {
        Some(Value::Array(parts)) => text_parts(parts).map_err(|e| format!("field `{text}`: {e}"))?,
        _ => string(turn, text)?.to_owned(),
    };
    Ok(Message::new(speaker, content))
}

/// OpenAI's list of content parts, when all are text.
fn text_parts(parts: &[Value]) -> Result<String, String> {
    let part_text = |part: &Value| match (part.get("type").and_then(Value::as_str), part.get("text")) {
        (Some("text"), Some(Value::String(text))) => Ok(text.clone()),
        (Some(other), _) if other != "text" => {
            Err(format!("a part of type `{}`; only text is supported", shorten(other)))
        }
        _ => Err("a part that is not {\"type\": \"text\", \"text\": ...}".to_owned()),
    };
    parts.iter().map(part_text).collect()
}

fn string<'a>(object: &'a Object, field: &str) -> Result<&'a str, String> {
    match object.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("field `{field}` is {}, not a string", kind(other))),
        None => Err(missing(object, field)),
    }
}

fn missing(object: &Object, field: &str) -> String {
    format!("field `{field}` is missing; the row has {}", fields(object))
}

/// The fields of a row, for messages.
fn fields(object: &Object) -> String {
    match object.keys().map(|name| format!("`{}`", shorten(name))).take(20).collect::<Vec<_>>().join(", ") {
        names if names.is_empty() => "no fields".into(),
        names => format!("the fields {names}"),
    }
}

/// What a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A name from the data as it may stand in a message.
fn shorten(name: &str) -> String {
    let mut short: String = name.chars().take(40).flat_map(char::escape_debug).collect();
    if name.chars().nth(40).is_some() {
        short.push_str("...");
    }
    short
}
