//! Merging the layers into one [`RunFile`].

use super::error::ConfigError;
use super::kind::Kind;
use super::layers::{self, Origin, Setting};
use super::sections::RunFile;
use super::{keys, rules};
use config::{Config, Map, Source, ValueKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Value;

/// A run file with every value known, and where each comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The values. `run.name` and `run.dir` are filled in; paths are relative to the working directory or absolute.
    pub run: RunFile,
    /// Where the value of every key comes from.
    pub origins: BTreeMap<&'static str, Origin>,
    /// The run file.
    pub path: PathBuf,
}

impl Resolved {
    /// Where the value of `key` comes from.
    #[must_use]
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }
}

/// Reads, layers and validates a run file.
///
/// `overrides` are the pairs of `--set section.key=value`; `env` are the environment variables that name keys
/// ([`layers::environment`]). A later layer wins over an earlier one: defaults, file, environment, `--set`. Paths in
/// the file are relative to the file's directory, paths of the other layers to the working directory.
///
/// # Errors
/// The first thing that is wrong, in the order of the layers; contradictions last.
pub fn load(path: &Path, overrides: &[(String, String)], env: &[(String, String)]) -> Result<Resolved, ConfigError> {
    let text = layers::read(path)?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut file = layers::from_file(path, &text)?;
    file.iter_mut().for_each(|setting| anchor(setting, directory));
    resolve(path, [file, layers::from_environment(env)?, layers::from_overrides(overrides)?])
}

/// Merges layers, later over earlier, fills in what is derived, and applies the rules.
pub(super) fn resolve(path: &Path, layers: [Vec<Setting>; 3]) -> Result<Resolved, ConfigError> {
    let mut origins: BTreeMap<_, _> = keys::KEYS.iter().map(|key| (key.name, Origin::Default)).collect();
    for setting in layers.iter().flatten() {
        origins.insert(setting.key.name, setting.origin.clone());
    }
    require(path, &origins)?;
    let builder = layers.into_iter().fold(Config::builder(), |builder, layer| builder.add_source(Layer(layer)));
    // Every setting passed its key's check, so this cannot fail; a test holds the checks against the types.
    let mut run: RunFile = builder.build().and_then(Config::try_deserialize).map_err(|error| {
        let reason = error.to_string();
        ConfigError::Unreadable { path: path.to_owned(), reason }
    })?;
    name_run(&mut run, path)?;
    locate_model(&mut run);
    let resolved = Resolved { run, origins, path: path.to_owned() };
    rules::check(&resolved)?;
    Ok(resolved)
}

/// Keys without a default must be set.
fn require(path: &Path, origins: &BTreeMap<&'static str, Origin>) -> Result<(), ConfigError> {
    for name in ["model.source", "data.train"] {
        if origins.get(name) == Some(&Origin::Default) {
            let allowed = keys::find(name).map(|key| key.kind.allowed()).unwrap_or_default();
            return Err(ConfigError::Missing { key: name, path: path.to_owned(), allowed });
        }
    }
    Ok(())
}

/// `run.name` is the file's stem and `run.dir` is `runs/<name>` when they are not set.
fn name_run(run: &mut RunFile, path: &Path) -> Result<(), ConfigError> {
    if run.run.name.is_empty() {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if Kind::Name.check(&Value::String(stem.clone())).is_err() {
            return Err(ConfigError::BadValue {
                key: "run.name",
                value: layers::shown(&Value::String(stem)),
                origin: Origin::Default,
                problem: "is the name of the run file and cannot name the run: set run.name".into(),
                allowed: Kind::Name.allowed(),
            });
        }
        run.run.name = stem;
    }
    if run.run.dir.as_os_str().is_empty() {
        run.run.dir = Path::new("runs").join(&run.run.name);
    }
    Ok(())
}

/// A model's path is made absolute: it travels to workers, which may run elsewhere.
fn locate_model(run: &mut RunFile) {
    if !run.model.source.starts_with("hf:")
        && let Ok(path) = std::path::absolute(&run.model.source)
    {
        run.model.source = path.to_string_lossy().into_owned();
    }
}

/// Makes the paths of a setting relative to `directory`.
fn anchor(setting: &mut Setting, directory: &Path) {
    let join = |text: &mut String| *text = directory.join(&*text).to_string_lossy().into_owned();
    match (setting.key.kind, &mut setting.value) {
        (Kind::Path | Kind::Paths, Value::String(text)) => join(text),
        (Kind::Model, Value::String(text)) if !text.starts_with("hf:") => join(text),
        // A built-in template is a bare word; whatever looks like a file name is one.
        (Kind::Template, Value::String(text)) if text.contains(['/', '.']) => join(text),
        (Kind::Paths, Value::Array(items)) => {
            for item in items {
                if let Value::String(text) = item {
                    join(text);
                }
            }
        }
        _ => {}
    }
}

/// One layer, as the `config` crate reads it.
#[derive(Clone, Debug)]
struct Layer(Vec<Setting>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, config::Value>, config::ConfigError> {
        let entry = |setting: &Setting| {
            let origin = setting.origin.to_string();
            (setting.key.name.to_owned(), config::Value::new(Some(&origin), kind(&setting.value)))
        };
        Ok(self.0.iter().map(entry).collect())
    }
}

/// A checked value in the types of the `config` crate. No key holds a date or a table.
fn kind(value: &Value) -> ValueKind {
    match value {
        Value::Boolean(boolean) => ValueKind::Boolean(*boolean),
        Value::Integer(integer) => ValueKind::I64(*integer),
        Value::Float(float) => ValueKind::Float(*float),
        Value::String(text) => ValueKind::String(text.clone()),
        Value::Array(items) => {
            ValueKind::Array(items.iter().map(|item| config::Value::new(None, kind(item))).collect())
        }
        Value::Datetime(_) | Value::Table(_) => ValueKind::Nil,
    }
}
