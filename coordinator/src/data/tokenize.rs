//! Segments to token ids, and ids to samples.

use super::error::DataError;
use super::segment::Segment;
use crate::config::OnTooLong;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::sync::OnceLock;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{Encoding, Tokenizer};

/// Stands for a preview in a rendered prompt until its ids are spliced in: a Unicode noncharacter, so no text has it.
pub const SPLICE_MARK: char = '\u{FDD0}';

/// A sequence to train on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Token ids, without padding.
    pub ids: Vec<u32>,
    /// Ranges of tokens that bear loss: ascending, disjoint, not empty, none starting at 0 (no token predicts the
    /// first one).
    pub loss: Vec<Range<u32>>,
}

impl Sample {
    /// Tokens that bear loss.
    #[must_use]
    pub fn loss_tokens(&self) -> u64 {
        self.loss.iter().map(|r| u64::from(r.end - r.start)).sum()
    }

    /// The ids before the first answer: what a model is given at inference.
    #[must_use]
    pub fn prompt(&self) -> &[u32] {
        let end = self.loss.first().map_or(self.ids.len(), |r| r.start as usize);
        &self.ids[..end.min(self.ids.len())]
    }
}

/// A text that was tokenized by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// The text.
    pub text: String,
    /// Its ids.
    pub ids: Vec<u32>,
    /// The bytes of the text that each of them stands for; tokens that share a character all cover the whole of it.
    pub ranges: Vec<Range<usize>>,
}

/// The base model's tokenizer, as prompts and answers need it.
pub struct Encoder {
    /// For text that begins a sequence.
    start: Tokenizer,
    /// For text that continues one, where that makes a difference.
    inside: Option<Tokenizer>,
    /// The token to put before a sequence that does not begin with its text.
    bos: Option<(String, u32)>,
    /// Special tokens before which any text is tokenized as if it stood alone.
    dividers: Vec<String>,
    /// What the first prompt has before its second divider, and its ids: in most sets the system turn of every row.
    opening: OnceLock<Tokenized>,
    vocab_size: usize,
    sha256: String,
}

impl Encoder {
    /// Takes the tokenizer of a model with embeddings for `vocab_size` tokens.
    ///
    /// `stop_ids` tell an end from a beginning where `add_bos` has the tokenizer begin sequences by its own rules.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when a part of the tokenizer cannot be rebuilt without its dummy prefix.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, add_bos: bool, stop_ids: &[u32]) -> Result<Self, DataError> {
        let text = tokenizer.to_string(false).map_err(failed)?;
        let bos = match add_bos {
            true => beginning(tokenizer, stop_ids)?,
            false => None,
        };
        let mut start = tokenizer.clone();
        // Special tokens come from the template; truncation and padding are not the tokenizer's business here.
        start.with_post_processor(None::<PostProcessorWrapper>).with_padding(None);
        start.with_truncation(None).map_err(failed)?;
        let inside = without_dummy_prefix(&start)?;
        let dividers = dividers(&start);
        Ok(Self {
            start,
            inside,
            bos,
            dividers,
            opening: OnceLock::new(),
            vocab_size,
            sha256: hex::encode(Sha256::digest(text)),
        })
    }

    /// SHA-256 of the tokenizer as JSON.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Tokenizes a text that stands alone, as LookAhead's previews are counted.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer fails.
    pub fn alone(&self, text: &str) -> Result<Tokenized, DataError> {
        let encoding = self.start.encode(text, false).map_err(failed)?;
        let ranges = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Tokenized { text: text.to_owned(), ids: encoding.get_ids().to_vec(), ranges })
    }

    /// Tokens of a text within a sequence.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer fails.
    pub fn count(&self, text: &str) -> Result<usize, DataError> {
        Ok(self.continuing(text)?.len())
    }

    /// A conversation's ids.
    ///
    /// `spliced[k]`, where not empty, is the text that [`SPLICE_MARK`] stands for in the prompt of the `k`-th answer:
    /// it gets the very ids that the answer has for it. Answers that are `known` are not tokenized again.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer fails or gives an id that the model has no embedding for;
    /// [`DataError::Template`] when the template did not render a mark, or its answer, as it was.
    pub fn sample(&self, segments: &[Segment], spliced: &[&str], known: &[Tokenized]) -> Result<Sample, DataError> {
        let mut sample = Sample::default();
        for (index, pair) in segments.chunks(2).enumerate() {
            let [prompt, answer] = pair else { continue };
            let answer_ids = match spliced.get(index) {
                Some(&preview) if !preview.is_empty() => {
                    let (ids, shown) = self.answer_with_preview(&answer.text, preview)?;
                    self.splice(&mut sample.ids, &prompt.text, &ids[shown], index == 0)?;
                    ids
                }
                _ => {
                    sample.ids.extend(self.prompt(&prompt.text, index == 0)?);
                    self.answer(&answer.text, known)?
                }
            };
            let start = sample.ids.len().max(1);
            sample.ids.extend(answer_ids);
            if start < sample.ids.len() {
                sample.loss.push(position(start)..position(sample.ids.len()));
            }
        }
        self.check(&sample.ids)?;
        Ok(sample)
    }

    /// Ids of a prompt to be answered.
    ///
    /// # Errors
    /// As [`Encoder::sample`].
    pub fn prompt_only(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let ids = self.prompt(text, true)?;
        self.check(&ids)?;
        Ok(ids)
    }

    fn prompt(&self, text: &str, begins: bool) -> Result<Vec<u32>, DataError> {
        if !begins {
            return self.continuing(text);
        }
        let bos = self.bos.iter().filter(|(bos, _)| !text.starts_with(bos.as_str())).map(|&(_, id)| id);
        let (opening, rest) = self.opening(text)?;
        let encoding = self.start.encode_fast(rest, false).map_err(failed)?;
        Ok(bos.chain(opening.iter().chain(encoding.get_ids()).copied()).collect())
    }

    /// The ids of the opening of a prompt that has it, and the rest. A divider follows, so they are the same as in the
    /// whole prompt; without a dummy prefix, those of the rest are too.
    fn opening<'a>(&self, text: &'a str) -> Result<(&[u32], &'a str), DataError> {
        if self.inside.is_some() {
            return Ok((&[], text));
        }
        if self.opening.get().is_none() {
            let divided = self.dividers.iter().flat_map(|divider| text.match_indices(divider)).map(|(at, _)| at);
            let second = divided.filter(|at| *at > 0).min().unwrap_or(0);
            let first = self.alone(&text[..second])?;
            // Another thread may have met another prompt first: either serves.
            let _ = self.opening.set(first);
        }
        let known = self.opening.get().and_then(|known| Some((known, text.strip_prefix(&*known.text)?)));
        Ok(match known {
            Some((known, rest)) if self.divided(rest) => (&known.ids, rest),
            _ => (&[], text),
        })
    }

    /// Whether a text begins with a divider.
    fn divided(&self, text: &str) -> bool {
        self.dividers.iter().any(|divider| text.starts_with(divider.as_str()))
    }

    fn continuing(&self, text: &str) -> Result<Vec<u32>, DataError> {
        Ok(self.inside().encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// An answer's ids: those of a known text, when a divider follows it here.
    fn answer(&self, text: &str, known: &[Tokenized]) -> Result<Vec<u32>, DataError> {
        let prefix = known.iter().filter(|_| self.inside.is_none()).find_map(|known| {
            Some((known, text.strip_prefix(known.text.as_str()).filter(|after| self.divided(after))?))
        });
        match prefix {
            Some((known, after)) => Ok([known.ids.as_slice(), &self.continuing(after)?].concat()),
            None => self.continuing(text),
        }
    }

    fn inside(&self) -> &Tokenizer {
        self.inside.as_ref().unwrap_or(&self.start)
    }

    /// An answer's ids, and which of them show the preview: not those of what the template puts before the answer.
    fn answer_with_preview(&self, answer: &str, preview: &str) -> Result<(Vec<u32>, Range<usize>), DataError> {
        let start = answer.find(preview).ok_or_else(|| {
            DataError::Template("the chat template changes the answer, so no token ids of it can be previewed".into())
        })?;
        let encoding: Encoding = self.inside().encode(answer, false).map_err(failed)?;
        let end = start + preview.len();
        let offsets = encoding.get_offsets();
        let before = offsets.iter().take_while(|(_, token_end)| *token_end <= start).count();
        let shown = offsets.iter().take_while(|(token_start, _)| *token_start < end).count();
        Ok((encoding.get_ids().to_vec(), before..shown))
    }

    fn splice(&self, ids: &mut Vec<u32>, prompt: &str, preview: &[u32], begins: bool) -> Result<(), DataError> {
        let mut parts = prompt.split(SPLICE_MARK);
        let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(DataError::Template(
                "the chat template renders a user turn other than once, so no token ids can be previewed in it".into(),
            ));
        };
        ids.extend(self.prompt(before, begins)?);
        ids.extend(preview);
        ids.extend(self.continuing(after)?);
        Ok(())
    }

    fn check(&self, ids: &[u32]) -> Result<(), DataError> {
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            None => Ok(()),
            Some(id) => {
                let token = self.start.id_to_token(*id).unwrap_or_default();
                let size = self.vocab_size;
                Err(DataError::Tokenizer(format!(
                    "the tokenizer gives token {id} (`{token}`), but the base model has only {size} embeddings"
                )))
            }
        }
    }
}

/// Special tokens that are cut out of a text before anything else is done to it, and nothing but themselves: none that
/// takes spaces with it, looks at its neighbours, or is a part of another.
fn dividers(tokenizer: &Tokenizer) -> Vec<String> {
    let tokens = tokenizer.get_added_tokens_decoder();
    let within_another = |text: &str| tokens.values().filter(|other| other.content.contains(text)).count() > 1;
    tokens
        .values()
        .filter(|token| token.special && !token.normalized && !token.lstrip && !token.single_word)
        .map(|token| token.content.clone())
        .filter(|text| !text.is_empty() && !within_another(text))
        .collect()
}

fn failed(error: impl std::fmt::Display) -> DataError {
    DataError::Tokenizer(format!("the tokenizer failed: {error}"))
}

/// A position within a sample. Samples are far shorter than 2^32 tokens: a longer one would not fit a line of data.
fn position(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// The token that the tokenizer puts before a text by its own rules, if any.
fn beginning(tokenizer: &Tokenizer, stop_ids: &[u32]) -> Result<Option<(String, u32)>, DataError> {
    let alone = tokenizer.encode("", true).map_err(failed)?;
    let first = alone.get_ids().first().copied().filter(|id| !stop_ids.contains(id));
    Ok(first.and_then(|id| Some((tokenizer.id_to_token(id)?, id))))
}

/// The tokenizer for text that continues a sequence: without the space that SentencePiece tokenizers (and some
/// byte-level ones) put before a text. `None` when there is no such space.
fn without_dummy_prefix(tokenizer: &Tokenizer) -> Result<Option<Tokenizer>, DataError> {
    let normalizer = serde_json::to_value(tokenizer.get_normalizer()).map_err(failed)?;
    let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).map_err(failed)?;
    let (mut plain_normalizer, mut plain_pre_tokenizer) = (normalizer.clone(), pre_tokenizer.clone());
    drop_prepend(&mut plain_normalizer);
    drop_prefix_space(&mut plain_pre_tokenizer);
    if (&normalizer, &pre_tokenizer) == (&plain_normalizer, &plain_pre_tokenizer) {
        return Ok(None);
    }
    let mut inside = tokenizer.clone();
    let plain: Option<NormalizerWrapper> = serde_json::from_value(plain_normalizer).map_err(failed)?;
    inside.with_normalizer(plain).map_err(failed)?;
    let plain: Option<PreTokenizerWrapper> = serde_json::from_value(plain_pre_tokenizer).map_err(failed)?;
    inside.with_pre_tokenizer(plain);
    Ok(Some(inside))
}

/// Takes `Prepend` (Llama 2's way to the space) out of a normalizer.
fn drop_prepend(normalizer: &mut Value) {
    if normalizer["type"] == "Prepend" {
        *normalizer = Value::Null;
    } else if let Some(Value::Array(parts)) = normalizer.get_mut("normalizers") {
        parts.iter_mut().for_each(drop_prepend);
        parts.retain(|part| !part.is_null());
    }
}

/// Tells `Metaspace` and `ByteLevel` (the other ways) to add no space.
fn drop_prefix_space(pre_tokenizer: &mut Value) {
    match pre_tokenizer["type"].as_str() {
        Some("Metaspace") => pre_tokenizer["prepend_scheme"] = json!("never"),
        Some("ByteLevel") => pre_tokenizer["add_prefix_space"] = json!(false),
        _ => {
            if let Some(Value::Array(parts)) = pre_tokenizer.get_mut("pretokenizers") {
                parts.iter_mut().for_each(drop_prefix_space);
            }
        }
    }
}

/// What became of a sample under the length limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fitted {
    /// It is short enough.
    Whole(Sample),
    /// Its end was cut off.
    Cut(Sample),
    /// It was left out, as the policy says.
    Skipped,
    /// It was left out because no token that bears loss would have remained.
    NothingLeft,
}

/// Applies the length limit.
///
/// # Errors
/// The sample's length when it is over the limit and the policy is to fail.
pub fn fit(mut sample: Sample, max_tokens: usize, policy: OnTooLong) -> Result<Fitted, usize> {
    if sample.ids.len() <= max_tokens {
        return Ok(Fitted::Whole(sample));
    }
    match policy {
        OnTooLong::Fail => Err(sample.ids.len()),
        OnTooLong::Skip => Ok(Fitted::Skipped),
        OnTooLong::Truncate => {
            sample.ids.truncate(max_tokens);
            let end = position(max_tokens);
            sample.loss.retain_mut(|range| {
                range.end = range.end.min(end);
                range.start < range.end
            });
            Ok(if sample.loss.is_empty() { Fitted::NothingLeft } else { Fitted::Cut(sample) })
        }
    }
}
