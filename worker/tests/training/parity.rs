//! Twenty steps of a tiny model, beside PEFT's.

use super::support::{sequence, shard};
use ballast_basemodel::ModelSource;
use ballast_kernels::PackedLayout;
use ballast_kernels::cpu::CpuBackend;
use ballast_proto::v1::schedule::Kind;
use ballast_proto::v1::{Lora, Optimizer, Reduction, RunSpec, Schedule, Sequence};
use ballast_worker::collective::Solo;
use ballast_worker::model::{Batch, Decoder, Pass, Rows};
use ballast_worker::progress::Progress;
use ballast_worker::trainer::Trainer;
use bytes::Bytes;
use safetensors::tensor::{SafeTensors, serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

const STEP_TENSORS: &str = "adapter_model.safetensors";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft-tiny")
}

#[derive(serde::Deserialize)]
struct Golden {
    batches: Vec<Vec<Sample>>,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
}

#[derive(serde::Deserialize)]
struct Sample {
    prompt_len: usize,
    ids: Vec<u32>,
}

static GOLDEN: LazyLock<Golden> =
    LazyLock::new(|| serde_json::from_slice(&std::fs::read(fixture().join("golden.json")).unwrap()).unwrap());

static DECODER: LazyLock<Arc<Decoder<CpuBackend>>> = LazyLock::new(|| {
    let source = fixture().join("model");
    let model = ModelSource::parse(source.to_str().unwrap(), None).unwrap().fetch().unwrap();
    Arc::new(Decoder::load(&Arc::new(CpuBackend::new(1).unwrap()), &model).unwrap())
});

/// Tensors of a golden file under the names of PEFT's saved adapters.
fn tensors(file: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(fixture().join(file)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    file.iter().map(|(name, view)| (name.replace(".default.", "."), floats(view.data()))).collect()
}

/// A trainer that stands where PEFT began.
fn trainer() -> Trainer<CpuBackend> {
    let golden_run = RunSpec {
        lora: Some(Lora {
            rank: 4,
            alpha: 8.0,
            scaling: 2.0,
            dropout: 0.0,
            target_modules: super::support::ALL_LINEAR.map(String::from).to_vec(),
        }),
        optimizer: Some(Optimizer {
            learning_rate: 5e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            clip_norm: 0.0,
        }),
        schedule: Some(Schedule { kind: Kind::Constant as i32, warmup_steps: 0 }),
        total_steps: 20,
        reduction: Reduction::Exact as i32,
        ..RunSpec::default()
    };
    let mut trainer = super::support::trainer(&DECODER, &golden_run);
    let bytes = std::fs::read(fixture().join("adapter_init.safetensors")).unwrap();
    let initial = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = initial.iter().map(|(name, view)| (name.replace(".default.", "."), view));
    let adapter = serialize(renamed, None).unwrap();
    let files = trainer.export_state().unwrap().files;
    let files: Vec<(String, Bytes)> = files
        .into_iter()
        .map(|(name, bytes)| if name == STEP_TENSORS { (name, adapter.clone()) } else { (name, bytes) })
        .map(|(name, bytes)| (name, Bytes::from(bytes)))
        .collect();
    trainer.import_state(0, &files).unwrap();
    trainer
}

fn relative_distance(ours: &[f32], golden: &[f32]) -> f64 {
    assert_eq!(ours.len(), golden.len());
    let square = |x: f64| x * x;
    let difference: f64 = ours.iter().zip(golden).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = golden.iter().map(|&b| square(f64::from(b))).sum();
    assert!(norm > 0.0);
    (difference / norm).sqrt()
}

fn samples(batch: &[Sample]) -> Vec<Sequence> {
    let numbered = batch.iter().enumerate();
    numbered.map(|(number, sample)| sequence(number as u64, sample.ids.clone(), sample.prompt_len)).collect()
}

/// Trains all steps with each batch's four samples packed into micro-batches as `packing` says.
fn trains_like_peft(packing: &[&[usize]]) {
    let mut trainer = trainer();
    for (step, (batch, (golden_loss, golden_norm))) in
        GOLDEN.batches.iter().zip(GOLDEN.losses.iter().zip(&GOLDEN.grad_norms)).enumerate()
    {
        let samples = samples(batch);
        let micro_batches: Vec<Vec<Sequence>> =
            packing.iter().map(|picked| picked.iter().map(|&sample| samples[sample].clone()).collect()).collect();
        let outcome = trainer.step(&shard(step as u64 + 1, &micro_batches), &mut Solo).unwrap();
        let difference = (outcome.loss - golden_loss).abs() / golden_loss;
        assert!(difference <= 2e-5, "step {step}: loss {} where PEFT has {golden_loss}", outcome.loss);
        let difference = (outcome.grad_norm - golden_norm).abs() / golden_norm;
        assert!(difference <= 1e-3, "step {step}: norm {} where PEFT has {golden_norm}", outcome.grad_norm);
        if step == 0 {
            let gradient = trainer.last_gradient().unwrap();
            let golden = tensors("step0_grads.safetensors");
            for tensor in trainer.layout().tensors() {
                let distance = relative_distance(&gradient[tensor.range.clone()], &golden[&tensor.name]);
                assert!(distance <= 1e-4, "gradient of {}: {distance}", tensor.name);
            }
        }
    }
    let exported = trainer.export_state().unwrap();
    let adapter = SafeTensors::deserialize(&exported.files[0].1).unwrap();
    let golden = tensors("adapter_final.safetensors");
    for (name, golden) in golden.iter().filter(|(name, _)| name.contains("lora_B")) {
        let data = adapter.tensor(name).unwrap().data();
        let ours: Vec<f32> = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let distance = relative_distance(&ours, golden);
        assert!(distance <= 1e-3, "final {name}: {distance}");
    }
}

#[test]
fn one_sample_a_micro_batch() {
    trains_like_peft(&[&[0], &[1], &[2], &[3]]);
}

#[test]
fn all_samples_in_one_micro_batch() {
    trains_like_peft(&[&[0, 1, 2, 3]]);
}

#[test]
fn mixed_micro_batches() {
    trains_like_peft(&[&[3, 1], &[0], &[2]]);
}

#[test]
fn logits_of_a_packed_batch_are_pefts() {
    let trainer = trainer();
    let golden = tensors("step0_logits.safetensors");
    let batch = samples(&GOLDEN.batches[0]);
    let ids: Vec<u32> = batch.iter().flat_map(|sample| sample.token_ids.clone()).collect();
    let lengths: Vec<u32> = batch.iter().map(|sample| sample.token_ids.len() as u32).collect();
    let layout = PackedLayout::new(&lengths, &[0, 1, 2, 3]);
    let backend = DECODER.backend();
    let (adapter, progress) = (trainer.adapter(), Progress::new());
    let packed = Batch::new(&**backend, &ids, &layout).unwrap();
    let pass = Pass { batch: &packed, adapter: Some(&adapter), progress: &progress };
    let every: Vec<u32> = (0..ids.len() as u32).collect();
    let hidden = DECODER.hidden(&pass, &Rows::new(&**backend, &every).unwrap()).unwrap();
    let logits = DECODER.logits(&hidden, ids.len()).unwrap();
    let vocabulary = DECODER.architecture().vocab_size;
    for (sample, bounds) in layout.bounds().windows(2).enumerate() {
        let ours = &logits[bounds[0] as usize * vocabulary..bounds[1] as usize * vocabulary];
        let distance = relative_distance(ours, &golden[&format!("logits_{sample}")]);
        assert!(distance <= 1e-5, "logits of sample {sample}: {distance}");
    }
}
