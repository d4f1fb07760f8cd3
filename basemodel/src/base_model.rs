//! An opened base model.

use crate::architecture::{config, gguf as gguf_architecture};
use crate::gguf::{self, Gguf, Metadata};
use crate::mapped::MappedFile;
use crate::weights::Weights;
use crate::{Architecture, ChatTemplate, Error, chat_template, files, hash, safetensors, stop, tokenizer};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Files of a model directory that bear meaning, besides its weights.
pub(crate) const COMPANIONS: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// A base model whose headers are read and checked, and whose weights are memory-mapped.
///
/// Its files must not change while it is open.
#[derive(Debug)]
pub struct BaseModel {
    architecture: Architecture,
    weights: Weights,
    origin: Origin,
    chat_template: Option<ChatTemplate>,
    stop_ids: Vec<u32>,
    sha256: OnceLock<String>,
}

/// Where everything that is not a weight comes from.
#[derive(Debug)]
enum Origin {
    Directory(PathBuf),
    Gguf(Metadata),
}

impl BaseModel {
    /// Opens `config.json` with safetensors in a directory.
    pub(crate) fn open_directory(directory: &Path) -> Result<Self, Error> {
        let config_path = directory.join("config.json");
        let config = files::read_object(&config_path, files::CONFIG_LIMIT)?.ok_or_else(|| no_config(directory))?;
        let architecture = config::parse(&config, &config_path)?;
        let tokenizer_config = directory.join("tokenizer_config.json");
        let tokenizer_config = files::read_object(&tokenizer_config, files::CONFIG_LIMIT)?.unwrap_or_default();
        let model = Self {
            weights: safetensors::open(directory)?,
            chat_template: chat_template::from_directory(directory, &tokenizer_config)?,
            stop_ids: stop::from_directory(directory, &config, &tokenizer_config, architecture.vocab_size)?,
            architecture,
            origin: Origin::Directory(directory.to_owned()),
            sha256: OnceLock::new(),
        };
        model.check_tensors()?;
        Ok(model)
    }

    /// Opens a GGUF file.
    pub(crate) fn open_gguf(path: &Path) -> Result<Self, Error> {
        let file = MappedFile::open(path)?;
        let gguf = Gguf::parse(file.bytes(), path)?;
        let architecture = gguf_architecture::parse(&gguf, file.bytes())?;
        let metadata = gguf.metadata.clone();
        let model = Self {
            weights: gguf::weights(file, gguf, &architecture),
            chat_template: chat_template::from_gguf(&metadata)?,
            stop_ids: stop::from_gguf(&metadata, architecture.vocab_size)?,
            architecture,
            origin: Origin::Gguf(metadata),
            sha256: OnceLock::new(),
        };
        model.check_tensors()?;
        Ok(model)
    }

    /// Every tensor that the decoder will ask for is there, in its shape, in a form that is read.
    fn check_tensors(&self) -> Result<(), Error> {
        self.architecture
            .required_tensors()
            .iter()
            .try_for_each(|(name, shape)| self.weights.check(name, shape).map(drop))
    }

    /// What the decoder looks like.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// SHA-256 (hex) over the files that bear weights or meaning, wherever they lie. Computed once; reads every byte.
    ///
    /// # Errors
    /// A file that was there when the model was opened cannot be read any more.
    pub fn sha256(&self) -> Result<String, Error> {
        if let Some(known) = self.sha256.get() {
            return Ok(known.clone());
        }
        let computed = match &self.origin {
            Origin::Directory(directory) => self.hash_directory(directory)?,
            // One file is the whole model, so its own name does not count.
            Origin::Gguf(_) => {
                hash::of_files(&self.weights.files.iter().map(|f| ("model.gguf", f)).collect::<Vec<_>>())
            }
        };
        Ok(self.sha256.get_or_init(|| computed).clone())
    }

    fn hash_directory(&self, directory: &Path) -> Result<String, Error> {
        let mut companions = Vec::new();
        for name in COMPANIONS.into_iter().chain([safetensors::INDEX]) {
            let path = directory.join(name);
            if path.is_file() {
                companions.push((name, MappedFile::open(&path)?));
            }
        }
        let shards =
            self.weights.files.iter().map(|f| (f.path().file_name().and_then(|n| n.to_str()).unwrap_or_default(), f));
        Ok(hash::of_files(&companions.iter().map(|(name, file)| (*name, file)).chain(shards).collect::<Vec<_>>()))
    }

    /// The tensor of this Hugging Face name as f32, row-major; query and key of GGUF files in Hugging Face's order.
    ///
    /// # Errors
    /// It is missing, has another shape, is stored in a form that is not read, or holds NaN or infinity.
    pub fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.weights.tensor_f32(name, shape)
    }

    /// Whether the model holds a tensor of this Hugging Face name.
    #[must_use]
    pub fn has_tensor(&self, name: &str) -> bool {
        self.weights.tensors.contains_key(name)
    }

    /// The Hugging Face names of all tensors, sorted.
    #[must_use]
    pub fn tensor_names(&self) -> Vec<String> {
        self.weights.tensors.keys().cloned().collect()
    }

    /// The tokenizer: `tokenizer.json`, or rebuilt from GGUF metadata.
    ///
    /// # Errors
    /// There is none, it is malformed, it is of a kind that cannot be rebuilt, or it makes tokens that the model lacks.
    pub fn tokenizer(&self) -> Result<tokenizers::Tokenizer, Error> {
        let (tokenizer, file) = match &self.origin {
            Origin::Directory(directory) => {
                let file = directory.join("tokenizer.json");
                (tokenizer::from_file(&file)?, file)
            }
            Origin::Gguf(metadata) => (tokenizer::from_gguf(metadata)?, metadata.file().to_owned()),
        };
        let rows = self.architecture.vocab_size;
        let last = tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id);
        match last.filter(|(_, id)| *id as usize >= rows) {
            Some((text, id)) => Err(Error::tokenizer(
                &file,
                format!("token {id} ({text:?}) is beyond the {rows} rows of the embedding table"),
            )),
            None => Ok(tokenizer),
        }
    }

    /// The model's own chat template, where it has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<ChatTemplate> {
        self.chat_template.clone()
    }

    /// Token ids that end an answer, ascending.
    #[must_use]
    pub fn stop_ids(&self) -> Vec<u32> {
        self.stop_ids.clone()
    }
}

/// A directory without `config.json`: say so, and point to the GGUF file that was perhaps meant.
fn no_config(directory: &Path) -> Error {
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok).map(|e| e.path());
    let mut gguf: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    gguf.sort();
    let hint = gguf.first().map(|p| format!("; to use the GGUF file, name it: {}", p.display())).unwrap_or_default();
    Error::NotFound(format!("{} holds no config.json{hint}", directory.display()))
}
