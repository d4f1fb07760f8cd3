//! Trains what PEFT trained, on ballast's packed path, and measures how far apart the two are.

use crate::golden::{Golden, Sample, Tensor, Tensors};
use anyhow::{Context, Result};
use ballast_basemodel::BaseModel;
use ballast_kernels::cpu::CpuBackend;
use ballast_kernels::{PackedLayout, Storage};
use ballast_proto::v1::{MicroBatch, Sequence, StepShard, TokenRange};
use ballast_worker::collective::Solo;
use ballast_worker::model::{Batch, Decoder, Pass, Rows};
use ballast_worker::progress::Progress;
use ballast_worker::trainer::Trainer;
use bytes::Bytes;
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::sync::Arc;

/// Largest relative difference of a step's loss.
pub const LOSS: f64 = 2e-5;
/// Largest relative distance of a tensor's gradient in the first step.
pub const GRADIENT: f64 = 1e-4;
/// Largest relative distance of a final B.
pub const FINAL_B: f64 = 1e-3;
/// Largest relative distance of a sample's logits.
pub const LOGITS: f64 = 1e-4;

/// Tokens of a micro-batch, at most: the default of `train.micro_batch_tokens`.
const MICRO_BATCH_TOKENS: usize = 1024;

/// A difference, with what it is of and how large it may be.
#[derive(Clone, Debug)]
pub struct Difference {
    /// What was compared: the worst of its kind.
    pub of: String,
    /// The difference, relative to PEFT's value.
    pub value: f64,
    /// The largest that is accepted.
    pub tolerance: f64,
}

impl Difference {
    /// Whether it is small enough; one that is no number is not.
    #[must_use]
    pub fn accepted(&self) -> bool {
        self.value <= self.tolerance
    }
}

/// What was found, a line a kind.
#[derive(Debug)]
pub struct Parity {
    /// Worst losses, gradients, logits and final B.
    pub differences: Vec<Difference>,
    /// Loss of every step, ours and PEFT's.
    pub losses: Vec<(f64, f64)>,
    /// Gradient tensors that are exactly zero on both sides (every `lora_A` while B is zero).
    pub zero_gradients: usize,
}

/// Runs the comparison on `threads` threads (0 means all cores), with frozen weights stored as `weights`.
///
/// # Errors
/// When the golden files do not fit the model, or training fails.
pub fn compare(golden: &Golden, model: &BaseModel, threads: usize, weights: Storage) -> Result<Parity> {
    let backend = Arc::new(CpuBackend::with_weights(threads, weights)?);
    let decoder = Arc::new(Decoder::load(&backend, model)?);
    let mut trainer = Trainer::new(Arc::clone(&backend), decoder, &golden.run_spec()?, Progress::new())?;
    // What is not planned comes as it is needed, and is used again.
    backend.reserve(0)?;
    start_from(&mut trainer, &golden.initial)?;

    let logits = worst(logits_distances(&trainer, golden)?, LOGITS)?;
    let mut losses = Vec::with_capacity(golden.losses.len());
    let (mut gradients, mut zero_gradients) = (None, 0);
    for (step, (batch, &theirs)) in (1..).zip(golden.batches.iter().zip(&golden.losses)) {
        let ours = trainer.step(&shard(step, batch), &mut Solo)?.loss;
        losses.push((ours, theirs));
        if step == 1 {
            let flat = trainer.last_gradient()?;
            let ours = trainer.layout().tensors().iter().map(|t| (t.name.clone(), &flat[t.range.clone()]));
            let distances = distances(ours, &golden.gradients, "gradient of ")?;
            zero_gradients = distances.iter().filter(|d| d.both_zero).count();
            gradients = Some(worst(distances, GRADIENT)?);
        }
    }
    let loss_of = |(step, &(ours, theirs)): (usize, &(f64, f64))| Distance {
        of: format!("loss of step {}", step + 1),
        value: ((ours - theirs) / theirs).abs(),
        both_zero: false,
    };
    let losses_worst = worst(losses.iter().enumerate().map(loss_of).collect(), LOSS)?;
    let last = worst(final_b_distances(&trainer, golden)?, FINAL_B)?;
    let differences = [Some(losses_worst), gradients, Some(logits), Some(last)].into_iter().flatten().collect();
    Ok(Parity { differences, losses, zero_gradients })
}

struct Distance {
    of: String,
    value: f64,
    both_zero: bool,
}

/// The largest; one that is no number counts as larger than all.
fn worst(distances: Vec<Distance>, tolerance: f64) -> Result<Difference> {
    let key = |d: &Distance| if d.value.is_nan() { f64::INFINITY } else { d.value };
    let worst = distances.into_iter().max_by(|a, b| key(a).total_cmp(&key(b))).context("nothing to compare")?;
    Ok(Difference { of: worst.of, value: worst.value, tolerance })
}

/// Relative distances of all of `theirs` from ours. Both must hold the same tensors.
fn distances<'a>(
    ours: impl Iterator<Item = (String, &'a [f32])>,
    theirs: &Tensors,
    what: &str,
) -> Result<Vec<Distance>> {
    let compare = |(name, ours): (String, &[f32])| {
        let theirs = theirs.get(&name).with_context(|| format!("the golden files have no {what}{name}"))?;
        let (value, both_zero) = relative_distance(ours, &theirs.values);
        Ok(Distance { of: format!("{what}{name}"), value, both_zero })
    };
    let distances: Vec<Distance> = ours.map(compare).collect::<Result<_>>()?;
    anyhow::ensure!(
        distances.len() == theirs.len(),
        "{} tensors where the golden files have {}",
        distances.len(),
        theirs.len()
    );
    Ok(distances)
}

/// `|ours - theirs| / |theirs|` (Frobenius), and whether both are exactly zero. NaN when they differ in length, infinite when only
/// theirs is zero.
fn relative_distance(ours: &[f32], theirs: &[f32]) -> (f64, bool) {
    if ours.len() != theirs.len() {
        return (f64::NAN, false);
    }
    let square = |x: f64| x * x;
    let distance: f64 = ours.iter().zip(theirs).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = theirs.iter().map(|&b| square(f64::from(b))).sum();
    if distance == 0.0 { (0.0, norm == 0.0) } else { ((distance / norm).sqrt(), false) }
}

/// Puts the trainer where PEFT began.
fn start_from(trainer: &mut Trainer<CpuBackend>, initial: &Tensors) -> Result<()> {
    let bytes: Vec<(&String, &Tensor, Vec<u8>)> =
        initial.iter().map(|(name, t)| (name, t, t.values.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
    let views = bytes
        .iter()
        .map(|(name, tensor, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let adapter = serialize(views, None)?;
    let files = trainer.export_state()?.files.into_iter();
    let files: Vec<(String, Bytes)> = files
        .map(|(name, bytes)| {
            let bytes = if name == "adapter_model.safetensors" { adapter.clone() } else { bytes };
            (name, Bytes::from(bytes))
        })
        .collect();
    Ok(trainer.import_state(0, &files)?)
}

/// A step, packed as it comes.
fn shard(step: u64, batch: &[Sample]) -> StepShard {
    let mut micro_batches: Vec<MicroBatch> = Vec::new();
    let mut room = 0;
    for (number, sample) in batch.iter().enumerate() {
        if sample.ids.len() > room {
            micro_batches.push(MicroBatch { index: micro_batches.len() as u32, sequences: Vec::new() });
            room = MICRO_BATCH_TOKENS.max(sample.ids.len());
        }
        room -= sample.ids.len();
        if let Some(micro_batch) = micro_batches.last_mut() {
            micro_batch.sequences.push(sequence(number, sample));
        }
    }
    StepShard {
        step,
        step_micro_batches: micro_batches.len() as u32,
        step_loss_tokens: batch.iter().map(|s| (s.ids.len() - s.prompt_len) as u64).sum(),
        step_tokens: batch.iter().map(|s| s.ids.len() as u64).sum(),
        micro_batches,
        ..StepShard::default()
    }
}

fn sequence(number: usize, sample: &Sample) -> Sequence {
    let loss = TokenRange { start: sample.prompt_len as u32, end: sample.ids.len() as u32 };
    Sequence { sample: number as u64, token_ids: sample.ids.clone(), loss: vec![loss] }
}

/// Distances of the first batch's logits, where the golden files have them.
fn logits_distances(trainer: &Trainer<CpuBackend>, golden: &Golden) -> Result<Vec<Distance>> {
    let decoder = trainer.decoder();
    let backend = &**decoder.backend();
    let (adapter, progress) = (trainer.adapter(), Progress::new());
    let mut distances = Vec::new();
    for (number, sample) in golden.batches[0].iter().enumerate() {
        let length = sample.ids.len() as u32;
        let batch = Batch::new(backend, &sample.ids, &PackedLayout::new(&[length], &[number as u64]))?;
        let pass = Pass { batch: &batch, adapter: Some(&adapter), progress: &progress };
        let of_sample = golden.logits.iter().filter(|(name, _)| sample_of(name) == Some(number));
        for (name, theirs) in of_sample {
            let first = length - theirs.shape[0] as u32;
            let rows: Vec<u32> = (first..length).collect();
            let hidden = decoder.hidden(&pass, &Rows::new(backend, &rows)?)?;
            let (value, both_zero) = relative_distance(&decoder.logits(&hidden, rows.len())?, &theirs.values);
            distances.push(Distance { of: name.clone(), value, both_zero });
        }
    }
    Ok(distances)
}

/// The sample that `logits_<i>` or `logits_b<i>_last<n>` belongs to.
fn sample_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("logits_")?;
    rest.strip_prefix('b').and_then(|rest| rest.split_once("_last")).map_or(rest, |(sample, _)| sample).parse().ok()
}

fn final_b_distances(trainer: &Trainer<CpuBackend>, golden: &Golden) -> Result<Vec<Distance>> {
    let state = trainer.export_state()?;
    let (_, bytes) = state.files.iter().find(|(name, _)| name == "adapter_model.safetensors").context("no adapter")?;
    let file = safetensors::SafeTensors::deserialize(bytes)?;
    let is_b = |name: &str| name.contains(".lora_B.");
    let theirs: Tensors =
        golden.last.iter().filter(|(name, _)| is_b(name)).map(|(n, t)| (n.clone(), t.clone())).collect();
    let ours: Vec<(String, Vec<f32>)> = file
        .iter()
        .filter(|(name, _)| is_b(name))
        .map(|(name, view)| {
            let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (name.to_owned(), values.collect())
        })
        .collect();
    distances(ours.iter().map(|(name, values)| (name.clone(), values.as_slice())), &theirs, "final ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_relative_and_never_hide_what_is_no_number() {
        assert_eq!(relative_distance(&[3.0, 4.0], &[3.0, 4.0]), (0.0, false));
        assert_eq!(relative_distance(&[0.0], &[0.0]), (0.0, true));
        assert_eq!(relative_distance(&[0.0, 5.0], &[0.0, 4.0]), (0.25, false));
        assert_eq!(relative_distance(&[1.0], &[0.0]).0, f64::INFINITY);
        for strange in [relative_distance(&[f32::NAN], &[1.0]).0, relative_distance(&[1.0], &[1.0, 2.0]).0] {
            let named = |value| Distance { of: "x".into(), value, both_zero: false };
            assert!(!worst(vec![named(strange), named(0.0)], 1.0).unwrap().accepted());
        }
    }

    #[test]
    fn logits_are_found_by_their_names() {
        assert_eq!(sample_of("logits_3"), Some(3));
        assert_eq!(sample_of("logits_b0_last32"), Some(0));
        assert_eq!(sample_of("logsumexp"), None);
    }

    #[test]
    fn a_step_is_packed_within_the_budget() {
        let sample = |len| Sample { prompt_len: 1, ids: vec![0; len] };
        let shard = shard(1, &[sample(600), sample(424), sample(1), sample(2000), sample(2)]);
        let sizes: Vec<usize> = shard.micro_batches.iter().map(|m| m.sequences.len()).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
        assert_eq!((shard.step_tokens, shard.step_loss_tokens, shard.step_micro_batches), (3027, 3022, 4));
    }
}
