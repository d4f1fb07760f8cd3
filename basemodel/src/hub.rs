//! Models of the Hugging Face hub, kept in the cache that all its tools share.
//!
//! The crate `hf-hub` does the transfers and lays out the cache. This module decides which files make a model, pins
//! them all to one commit, and checks what arrived: `hf-hub` believes any length, and waits forever.

mod transfer;

use crate::base_model::COMPANIONS;
use crate::{Error, files, safetensors};
use hf_hub::{Cache, Repo, RepoType};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// A transfer in which nothing arrives for so long is given up.
const STALL: Duration = Duration::from_secs(60);

/// How the hub is reached. The token is never printed.
#[derive(Clone)]
pub struct Hub {
    cache: Cache,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    stall: Duration,
}

impl Hub {
    /// As the environment says: `HF_HOME` (else `~/.cache/huggingface`), `HF_ENDPOINT`, `HF_TOKEN` (else the file
    /// `token` in `HF_HOME`), `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// There is no home directory, or the token cannot be one.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`Self::from_env`], with other variables than those of the process.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let variable = |name| variable(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let home = match variable("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => match variable("HOME") {
                Some(home) => Path::new(&home).join(".cache/huggingface"),
                None => {
                    return Err(Error::NotFound(
                        "neither HF_HOME nor HOME is set; one must say where the cache lies".into(),
                    ));
                }
            },
        };
        let home =
            std::path::absolute(&home).map_err(|e| Error::NotFound(format!("HF_HOME {}: {e}", home.display())))?;
        let cache = Cache::new(home.join("hub"));
        let token = variable("HF_TOKEN").or_else(|| cache.token());
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::NotFound("HF_TOKEN holds characters that are not allowed in a token".into()));
        }
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into());
        let offline = variable("HF_HUB_OFFLINE").is_some_and(|v| is_true(&v));
        Ok(Self { cache, endpoint: endpoint.trim_end_matches('/').to_owned(), token, offline, stall: STALL })
    }

    /// Gives transfers up after another silence than a minute.
    #[must_use]
    pub fn with_stall(self, stall: Duration) -> Self {
        Self { stall, ..self }
    }

    /// The directory with the model's configuration, tokenizer and safetensors.
    pub(crate) fn checkpoint(&self, name: &str, revision: &str) -> Result<PathBuf, Error> {
        if self.offline {
            return self.cached(name, revision, first_missing);
        }
        let (pinned, files) = self.resolve(name, revision)?;
        let has = |file: &str| files.contains(file);
        if !has("config.json") || !(has(safetensors::INDEX) || has(safetensors::SINGLE)) {
            return Err(no_checkpoint(name, &files));
        }
        for companion in COMPANIONS.into_iter().filter(|f| has(f)) {
            self.file(&pinned, companion)?;
        }
        if has(safetensors::INDEX) {
            let index = self.file(&pinned, safetensors::INDEX)?;
            for shard in shards(&index)? {
                if !has(&shard) {
                    return Err(Error::malformed(&index, format!("names {shard}, which {name} does not hold")));
                }
                self.file(&pinned, &shard)?;
            }
        } else {
            self.file(&pinned, safetensors::SINGLE)?;
        }
        self.remember(name, revision, &pinned)
    }

    /// The path of one GGUF file.
    pub(crate) fn gguf(&self, name: &str, file: &str, revision: &str) -> Result<PathBuf, Error> {
        if self.offline {
            let missing = |snapshot: &Path| Ok((!snapshot.join(file).is_file()).then(|| file.to_owned()));
            return Ok(self.cached(name, revision, missing)?.join(file));
        }
        let (pinned, files) = self.resolve(name, revision)?;
        if !files.contains(file) {
            return Err(Error::NotFound(format!("hf:{name} holds no {file}{}", list_gguf(name, &files))));
        }
        self.file(&pinned, file)?;
        Ok(self.remember(name, revision, &pinned)?.join(file))
    }

    /// The snapshot that the cache holds for a revision, if nothing of it is missing.
    fn cached(
        &self,
        name: &str,
        revision: &str,
        missing: impl Fn(&Path) -> Result<Option<String>, Error>,
    ) -> Result<PathBuf, Error> {
        let repo = self.cache.repo(model(name, revision));
        let absent = |what: &str| {
            let cache = self.cache.path().display();
            Error::NotFound(format!(
                "hf:{name} at {revision}: {what} is not in the cache {cache}, and HF_HUB_OFFLINE forbids to download it"
            ))
        };
        // A branch or tag is a file that names a commit; a commit stands for itself.
        let reference = self.cache.path().join(model(name, revision).folder_name()).join("refs").join(revision);
        let commit = files::read_text(&reference, 4096)?.unwrap_or_else(|| revision.to_owned());
        if !is_commit(commit.trim()) {
            return Err(absent("it"));
        }
        let snapshot = repo.pointer_path(commit.trim());
        match missing(&snapshot)? {
            Some(file) => Err(absent(&file)),
            None => Ok(snapshot),
        }
    }

    /// Notes that the revision is this commit, for later runs without a network, and returns the commit's directory.
    fn remember(&self, name: &str, revision: &str, pinned: &Repo) -> Result<PathBuf, Error> {
        let note = self.cache.repo(model(name, revision)).create_ref(pinned.revision());
        note.map_err(|e| Error::Download {
            repo: name.to_owned(),
            what: format!("the cache {} cannot be written: {e}", self.cache.path().display()),
        })?;
        Ok(self.cache.repo(pinned.clone()).pointer_path(pinned.revision()))
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = if self.token.is_some() { "set" } else { "none" };
        f.debug_struct("Hub")
            .field("cache", self.cache.path())
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .finish_non_exhaustive()
    }
}

fn model(name: &str, revision: &str) -> Repo {
    Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned())
}

fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].iter().any(|t| value.eq_ignore_ascii_case(t))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The shards that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>, Error> {
    let bytes = files::read(index, files::INDEX_LIMIT)?.unwrap_or_default();
    Ok(safetensors::parse_index(&bytes, index)?.into_values().collect())
}

/// The first file that a snapshot lacks to be a model.
fn first_missing(snapshot: &Path) -> Result<Option<String>, Error> {
    let mut wanted = BTreeSet::from(["config.json".to_owned()]);
    let index = snapshot.join(safetensors::INDEX);
    if index.is_file() {
        wanted.extend(shards(&index)?);
    } else {
        wanted.insert(safetensors::SINGLE.to_owned());
    }
    Ok(wanted.into_iter().find(|file| !snapshot.join(file).is_file()))
}

fn no_checkpoint(name: &str, files: &BTreeSet<String>) -> Error {
    let missing = if files.contains("config.json") { "safetensors" } else { "config.json" };
    Error::NotFound(format!("hf:{name} holds no {missing}{}", list_gguf(name, files)))
}

fn list_gguf(name: &str, files: &BTreeSet<String>) -> String {
    let sources: Vec<_> =
        files.iter().filter(|f| f.ends_with(".gguf")).take(20).map(|f| format!("hf:{name}/{f}")).collect();
    if sources.is_empty() { String::new() } else { format!("; its GGUF files are {}", sources.join(", ")) }
}
