//! Where a base model lies.

use crate::{BaseModel, Error, Hub};
use std::path::{Path, PathBuf};

/// Marks a model of the Hugging Face hub.
const HUB_PREFIX: &str = "hf:";
/// The branch that counts when no revision is given.
const DEFAULT_REVISION: &str = "main";
/// Longest owner, name or revision.
const MAX_NAME: usize = 200;

/// A parsed `model.source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// `config.json`, safetensors and `tokenizer.json` in a directory.
    Directory(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
    /// A model of the Hugging Face hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// The GGUF file of the repository that is meant (`hf:org/name/file.gguf`); safetensors when not given.
        file: Option<String>,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl ModelSource {
    /// Parses `model.source` and `model.revision`. Nothing is looked up, except which of file and directory a path is.
    ///
    /// # Errors
    /// The source is empty, names nothing that is there, or is no `hf:org/name`; or a revision is given with a path.
    pub fn parse(source: &str, revision: Option<&str>) -> Result<Self, Error> {
        if let Some(name) = source.strip_prefix(HUB_PREFIX) {
            return parse_hub(name, revision);
        }
        if source.is_empty() {
            return Err(Error::NotFound(
                "model.source is empty; a directory, a .gguf file or hf:org/name is wanted".into(),
            ));
        }
        if revision.is_some() {
            return Err(Error::NotFound(format!(
                "model.revision is given, but model.source {source} is a path; only hf:org/name has revisions"
            )));
        }
        let path = Path::new(source);
        if path.is_dir() {
            Ok(Self::Directory(path.to_owned()))
        } else if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            // Whether it is there is found out when it is opened, so that a worker may be told a path before it exists.
            Ok(Self::Gguf(path.to_owned()))
        } else if path.exists() {
            Err(Error::NotFound(format!("model.source {source} is neither a directory nor a .gguf file")))
        } else {
            let hint = if looks_like_repository(source) {
                format!(" (for the hub, write hf:{source})")
            } else {
                String::new()
            };
            Err(Error::NotFound(format!("model.source {source} does not exist{hint}")))
        }
    }

    /// Finds or downloads the files, opens them and checks their headers. Blocking; the hub is reached as the
    /// environment says ([`Hub::from_env`]).
    ///
    /// # Errors
    /// See [`Error`]: nothing there, not supported, malformed, or not to be downloaded.
    pub fn fetch(&self) -> Result<BaseModel, Error> {
        match self {
            Self::Directory(path) => BaseModel::open_directory(path),
            Self::Gguf(path) => BaseModel::open_gguf(path),
            Self::Hub { .. } => self.fetch_from(&Hub::from_env()?),
        }
    }

    /// As [`Self::fetch`], with this hub.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn fetch_from(&self, hub: &Hub) -> Result<BaseModel, Error> {
        match self {
            Self::Hub { repo, file: None, revision } => BaseModel::open_directory(&hub.checkpoint(repo, revision)?),
            Self::Hub { repo, file: Some(file), revision } => BaseModel::open_gguf(&hub.gguf(repo, file, revision)?),
            Self::Directory(_) | Self::Gguf(_) => self.fetch(),
        }
    }
}

fn parse_hub(name: &str, revision: Option<&str>) -> Result<ModelSource, Error> {
    let wrong =
        || Error::NotFound(format!("model.source hf:{name} is not of the form hf:org/name or hf:org/name/file.gguf"));
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    if !revision.split('/').all(is_name) {
        return Err(Error::NotFound(format!("model.revision {revision:?} is not a branch, tag or commit")));
    }
    let parts: Vec<&str> = name.split('/').collect();
    let (repo, file) = match parts.as_slice() {
        [org, model] => (format!("{org}/{model}"), None),
        [org, model, file] if file.ends_with(".gguf") => (format!("{org}/{model}"), Some((*file).to_owned())),
        _ => return Err(wrong()),
    };
    if !parts.into_iter().all(is_name) {
        return Err(wrong());
    }
    Ok(ModelSource::Hub { repo, file, revision: revision.to_owned() })
}

/// What the hub allows in a name, and what is safe as a part of a path.
fn is_name(part: &str) -> bool {
    (1..=MAX_NAME).contains(&part.len())
        && !part.starts_with('.')
        && !part.contains("..")
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn looks_like_repository(source: &str) -> bool {
    source.split('/').count() == 2 && source.split('/').all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names() {
        let hub = |repo: &str, file: Option<&str>, revision: &str| ModelSource::Hub {
            repo: repo.into(),
            file: file.map(Into::into),
            revision: revision.into(),
        };
        assert_eq!(ModelSource::parse("hf:org/name", None).unwrap(), hub("org/name", None, "main"));
        assert_eq!(ModelSource::parse("hf:o/n", Some("refs/pr/7")).unwrap(), hub("o/n", None, "refs/pr/7"));
        assert_eq!(
            ModelSource::parse("hf:o/n-GGUF/n.Q8_0.gguf", None).unwrap(),
            hub("o/n-GGUF", Some("n.Q8_0.gguf"), "main")
        );
        for bad in [
            "hf:",
            "hf:name",
            "hf:a/",
            "hf:/b",
            "hf:a/b/c",
            "hf:a/../b",
            "hf:../b",
            "hf:a/b c",
            "hf:a/b?x=y",
            "hf:.a/b",
        ] {
            let message = ModelSource::parse(bad, None).unwrap_err().to_string();
            assert_eq!(message, format!("model.source {bad} is not of the form hf:org/name or hf:org/name/file.gguf"));
        }
        for bad in ["", "../x", "a b", "a//b", "/etc"] {
            assert!(ModelSource::parse("hf:a/b", Some(bad)).unwrap_err().to_string().contains("model.revision"));
        }
    }

    #[test]
    fn paths() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        assert_eq!(ModelSource::parse(path, None).unwrap(), ModelSource::Directory(path.into()));
        assert_eq!(ModelSource::parse("/nowhere/x.GGUF", None).unwrap(), ModelSource::Gguf("/nowhere/x.GGUF".into()));
        let text = directory.path().join("notes.txt");
        std::fs::write(&text, "x").unwrap();
        let messages = [
            ("", None, "model.source is empty; a directory, a .gguf file or hf:org/name is wanted".to_owned()),
            ("org/name", None, "model.source org/name does not exist (for the hub, write hf:org/name)".to_owned()),
            ("/no/where", None, "model.source /no/where does not exist".to_owned()),
            (
                text.to_str().unwrap(),
                None,
                format!("model.source {} is neither a directory nor a .gguf file", text.display()),
            ),
            (
                "/no/where",
                Some("v1"),
                "model.revision is given, but model.source /no/where is a path; only hf:org/name has revisions"
                    .to_owned(),
            ),
        ];
        for (source, revision, message) in messages {
            assert_eq!(ModelSource::parse(source, revision).unwrap_err().to_string(), message);
        }
    }
}
