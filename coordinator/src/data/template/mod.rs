//! Chat templates: a conversation to the text that the model was taught to read.
//!
//! Templates are Jinja, rendered as `transformers` renders them (`apply_chat_template`): blocks trimmed, Python's
//! methods on strings and dictionaries, `raise_exception`, `tojson`, `break` and `continue`, `{% generation %}` as if
//! it were not there. One thing differs: `strftime_now` answers with [`TODAY`], so that the same rows give the same
//! tokens on every day.

mod builtin;
mod python;

use super::error::DataError;
use super::row::Message;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

pub use builtin::BUILT_INS;
pub use python::TODAY;

/// A template and what it may refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateSource {
    /// How messages call it: `the base model's chat template`, ...
    pub name: String,
    /// The Jinja text.
    pub source: String,
    /// Text of the token that begins a sequence.
    pub bos_token: Option<String>,
    /// Text of the token that ends a sequence.
    pub eos_token: Option<String>,
    /// The template leaves it to the tokenizer to begin the sequence (the built-in ones that name no such token).
    ///
    /// A model's own template says all there is: `transformers` and its peers add nothing to what it renders.
    pub tokenizer_adds_bos: bool,
}

impl TemplateSource {
    /// The built-in template of this name, for a model with these tokens.
    #[must_use]
    pub fn built_in(name: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Option<Self> {
        let (_, source) = BUILT_INS.iter().find(|(known, _)| *known == name)?;
        Some(Self {
            name: format!("the built-in chat template `{name}`"),
            source: (*source).to_owned(),
            bos_token: bos_token.map(str::to_owned),
            eos_token: eos_token.map(str::to_owned),
            tokenizer_adds_bos: true,
        })
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    name: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// A turn as templates see it.
#[derive(Clone, Debug)]
pub struct Turn(Value);

impl From<&Message> for Turn {
    fn from(message: &Message) -> Self {
        let fields = [("role", message.role.name()), ("content", message.content.as_str())];
        Self(Value::from_pairs(fields.map(|(field, text)| (field, Value::from(text)))))
    }
}

const TEMPLATE: &str = "chat template";
/// Instructions that one rendering may take: far more than any conversation needs, and less than a second.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`DataError::Template`] when it is no Jinja, naming the line.
    pub fn compile(source: &TemplateSource) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        let failed = |error: Error| DataError::Template(format!("{} does not compile: {error}", source.name));
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(python::print);
        environment.add_filter("tojson", python::to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", python::strftime_now);
        environment.add_template_owned(TEMPLATE, python::without_generation_tags(&source.source)).map_err(failed)?;
        Ok(Self {
            environment,
            name: source.name.clone(),
            bos_token: source.bos_token.clone(),
            eos_token: source.eos_token.clone(),
        })
    }

    /// Renders a conversation, with or without the header of the answer to come.
    ///
    /// # Errors
    /// [`DataError::Template`] with what the template objects to.
    pub fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String, DataError> {
        let messages: Vec<Value> = turns.iter().map(|turn| turn.0.clone()).collect();
        // A token that the model lacks stays undefined, as in transformers, so that templates may ask for it.
        let token = |text: &Option<String>| text.as_deref().map_or(Value::UNDEFINED, Value::from);
        let context = context! {
            messages, add_generation_prompt,
            tools => Value::from(()), documents => Value::from(()),
            bos_token => token(&self.bos_token), eos_token => token(&self.eos_token),
        };
        self.environment
            .get_template(TEMPLATE)
            .and_then(|template| template.render(context))
            .map_err(|error| self.refusal(&error))
    }

    /// How messages call the template.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn refusal(&self, error: &Error) -> DataError {
        let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
        let line = error.line().map_or_else(String::new, |line| format!(" (its line {line})"));
        DataError::Template(format!("{} cannot render the row: {what}{line}", self.name))
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}
