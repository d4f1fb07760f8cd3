//! The JSON Schema of a run file, for editors: from the same table that run files are read by.
//!
//! It says of each value what can be said of it alone. What contradicts another value is for [`super::rules`], and a key that
//! must be set may be set elsewhere: in the environment, or by `--set`.

use super::keys::{self, KEYS, Key};
use super::kind::{Kind, LONGEST_NAME};
use super::meanings::meanings;
use super::sections::RunFile;
use crate::json;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The schema, draft 2020-12. Its few keywords mean the same in every draft from 6 on, which is what some editors know.
#[must_use]
pub fn schema() -> Value {
    let meanings = meanings();
    let sections = keys::sections().into_iter().map(|name| (name.to_owned(), section(name, &meanings)));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Run file of Ballast",
        "description": "What `ballast train` and `ballast coordinator` are told of a run (TOML).",
        "type": "object",
        "properties": sections.collect::<Map<_, _>>(),
        "additionalProperties": false,
    })
}

impl Key {
    /// What it is when nobody sets it; `None` for a key that then is not set.
    #[must_use]
    pub fn default(&self) -> Option<Value> {
        let value = json::value(&RunFile::default()).pointer_mut(&format!("/{}", self.name.replace('.', "/")))?.take();
        let set = match &value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        };
        set.then_some(value)
    }
}

fn section(name: &str, meanings: &BTreeMap<String, String>) -> Value {
    let keys = KEYS.iter().filter(|key| key.section() == name);
    json!({
        "description": meanings.get(name),
        "type": "object",
        "properties": keys.map(|key| (key.word().to_owned(), property(key, meanings))).collect::<Map<_, _>>(),
        "additionalProperties": false,
    })
}

/// A path: not empty, and no shell's home directory.
const PATH: &str = "^([^~]|~[^/])";
/// The same, where `hf:` must be followed by organization and name.
const MODEL: &str = "^([^~h]|~[^/]|h([^f]|$)|hf([^:]|$)|hf:[0-9A-Za-z_-][0-9A-Za-z._-]*/[0-9A-Za-z_-][0-9A-Za-z._-]*$)";
const ADDRESS: &str = r"^(localhost|[0-9.]+|\[[0-9A-Fa-f:.%]+\]):[0-9]+$";
const STORE: &str = "^((s3|gs|az)://[^/@?# ]+(/[^@?# ]*)?|file:///[^@?# ]+)?$";

impl Kind {
    /// The keywords that say what [`Kind::check`] accepts. Where they cannot say it all they accept more, never less: to JSON
    /// Schema 1.0 is an integer.
    fn schema(&self) -> Map<String, Value> {
        let string = |pattern: &str| json!({ "type": "string", "pattern": pattern });
        let list = |items: Value| json!({ "type": "array", "items": items, "minItems": 1, "uniqueItems": true });
        let keywords = match self {
            Self::Boolean => json!({ "type": "boolean" }),
            Self::Integer(min, i64::MAX) => json!({ "type": "integer", "minimum": min }),
            Self::Integer(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
            Self::Positive(max) => json!({ "type": "number", "exclusiveMinimum": 0, "maximum": max }),
            Self::Above(least, max) => json!({ "type": "number", "exclusiveMinimum": least, "maximum": max }),
            Self::NotNegative(max) => json!({ "type": "number", "minimum": 0, "maximum": max }),
            Self::Fraction => json!({ "type": "number", "minimum": 0, "exclusiveMaximum": 1 }),
            Self::Text => json!({ "type": "string", "minLength": 1 }),
            Self::Name => string(&format!("^[0-9A-Za-z_][0-9A-Za-z._-]{{0,{}}}$", LONGEST_NAME - 1)),
            Self::Path | Self::Template => string(PATH),
            Self::Paths => json!({ "anyOf": [string(PATH), list(string(PATH))] }),
            Self::Model => string(MODEL),
            Self::Address => string(ADDRESS),
            Self::Store => string(STORE),
            Self::Word(words) => json!({ "type": "string", "enum": words }),
            Self::Words { all, known } => {
                json!({ "anyOf": [{ "type": "string", "const": all }, list(json!({ "type": "string", "enum": known }))] })
            }
        };
        match keywords {
            Value::Object(keywords) => keywords,
            _ => Map::new(),
        }
    }
}

fn property(key: &Key, meanings: &BTreeMap<String, String>) -> Value {
    let mut property = Map::new();
    property.insert("description".into(), json!(meanings.get(key.name)));
    property.extend(key.kind.schema());
    property.extend(key.default().map(|value| ("default".to_owned(), value)));
    property.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use boon::{Compiler, Draft, SchemaIndex, Schemas};
    use proptest::prelude::*;
    use std::path::{Path, PathBuf};

    /// A validator that is not ours. It refuses a schema that its draft's own schema refuses.
    struct Validator(Schemas, SchemaIndex);

    impl Validator {
        fn new() -> Self {
            let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
            compiler.set_default_draft(Draft::V2020_12);
            compiler.add_resource("run.json", schema()).unwrap();
            let index = compiler.compile("run.json", &mut schemas).unwrap();
            Self(schemas, index)
        }

        fn check(&self, run_file: &str) -> Result<(), String> {
            let document: toml::Table = run_file.parse().unwrap_or_else(|e| panic!("{run_file}: {e}"));
            let document = serde_json::to_value(document).unwrap();
            self.0.validate(&document, self.1).map_err(|error| format!("{error:#}"))
        }
    }

    fn toml_files(directory: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let below = |path: PathBuf| match path {
            path if path.is_dir() => toml_files(&path),
            path if path.extension().is_some_and(|extension| extension == "toml") => vec![path],
            _ => Vec::new(),
        };
        entries.flat_map(below).collect()
    }

    #[test]
    fn every_run_file_of_the_repository_is_valid() {
        let (root, validator) = (Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), Validator::new());
        let files: Vec<_> = ["examples", "bench", "deploy", "e2e/fixtures"]
            .iter()
            .flat_map(|dir| toml_files(&root.join(dir)))
            .collect();
        assert!(files.len() >= 8, "{files:?}");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            validator.check(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }

    #[test]
    fn every_key_is_in_it_with_its_meaning_and_its_default_and_nothing_else_is() {
        let schema = schema();
        let mut left: usize = schema["properties"].as_object().unwrap().values().map(keys_of).sum();
        for key in KEYS {
            let property = &schema["properties"][key.section()]["properties"][key.word()];
            assert!(
                property["description"].as_str().is_some_and(|text| text.ends_with('.')),
                "{} {property}",
                key.name
            );
            assert_eq!(property.get("default"), key.default().as_ref(), "{}", key.name);
            left -= 1;
        }
        assert_eq!(left, 0);
        assert_eq!(
            schema["properties"]["train"]["properties"]["epochs"],
            json!({
                "description": "Times every sample is trained.",
                "type": "integer",
                "minimum": 1,
                "maximum": 1_000_000,
                "default": 1,
            })
        );
        assert_eq!(schema["properties"]["train"]["description"], "Batches and the optimizer.");
    }

    fn keys_of(section: &Value) -> usize {
        section["properties"].as_object().unwrap().len()
    }

    #[test]
    fn what_is_in_effect_by_default_is_valid() {
        let mut text = String::new();
        for section in keys::sections() {
            text += &format!("[{section}]\n");
            for key in KEYS.iter().filter(|key| key.section() == section) {
                if let Some(default) = key.default() {
                    let default: toml::Value = serde_json::from_value(default).unwrap();
                    text += &format!("{} = {default}\n", key.word());
                }
            }
        }
        assert!(text.contains("epsilon = "), "{text}");
        Validator::new().check(&text).unwrap();
    }

    #[test]
    fn misspelt_keys_and_sections_are_refused() {
        let validator = Validator::new();
        for key in KEYS {
            let (section, word) = (key.section(), key.word());
            for text in [format!("[{section}]\n{word}x = 1"), format!("[{section}x]\n{word} = 1")] {
                let error = validator.check(&text).expect_err(&text);
                assert!(error.contains("additionalProperties"), "{text}: {error}");
            }
            validator.check(&format!("{word} = 1")).expect_err("a key of no section");
        }
    }

    /// Values one of which every key refuses for its type, and others that some refuse for their range.
    const VALUES: &str = "true; 0; 1; -1; 2.5; 0.5; 10000000000.5; 9223372036854775807; ''; '~'; '~/x'; '~x'; 'x'; \
        'a/b'; 'h'; 'hf'; 'hf:'; 'hf:a'; 'hf:a/b'; 'hf:a/b/c'; 'hf:.a/b'; 'hfx:a'; 'linear'; \
        'Linear'; 'q_proj'; 'all-linear'; []; [1]; ['q_proj']; ['q_proj', 'q_proj']; \
        ['q_proj', 'v_proj']; ['']; {}; 1979-05-27; 'localhost:1'; '127.0.0.1:7070'; '[::1]:0'; \
        'host:1'; '7070'; 's3://b'; 's3://'; 's3://k:s@b'; 'file:///x'; 'file://x'; 'http://x/y'";

    #[test]
    fn it_accepts_of_each_key_what_the_key_accepts_and_refuses_what_it_refuses() {
        let validator = Validator::new();
        for key in KEYS {
            let mut refused = 0;
            for value in VALUES.split("; ") {
                let text = format!("[{}]\n{} = {value}", key.section(), key.word());
                let document: toml::Table = text.parse().unwrap();
                let accepted = key.kind.check(&document[key.section()][key.word()]).is_ok();
                let valid = validator.check(&text);
                assert_eq!(accepted, valid.is_ok(), "{text}: {valid:?}");
                refused += usize::from(!accepted);
            }
            assert!(refused > 0, "{}", key.name);
        }
    }

    thread_local! {
        static VALIDATOR: Validator = Validator::new();
    }

    proptest! {
        /// An editor must not complain of what runs.
        #[test]
        fn no_text_that_a_key_accepts_is_refused(key in 0..KEYS.len(), text in "(hf:|~|s3://|[a-z]{1,3}|\\PC|[./:~@ -]){1,6}") {
            let key = KEYS[key];
            let value = toml::Value::String(text);
            if key.kind.check(&value).is_ok() {
                let run_file = format!("[{}]\n{} = {value}", key.section(), key.word());
                prop_assert_eq!(VALIDATOR.with(|validator| validator.check(&run_file)), Ok(()));
            }
        }
    }
}
