//! The whole model's adapter gradients against central differences of its loss, for every switch of the decoder.

use super::support::{decoder, run_spec, sample, shard, trainer, uniform};
use ballast_basemodel::{Activation, Architecture, RotaryScaling};
use ballast_kernels::cpu::CpuBackend;
use ballast_kernels::{Backend, PackedLayout};
use ballast_proto::v1::{Lora, RunSpec, Sequence};
use ballast_worker::collective::Solo;
use ballast_worker::lora::{Adapter, DropoutKey, LoraLayout};
use ballast_worker::model::{Batch, Decoder, Pass, Rows};
use ballast_worker::progress::Progress;
use bytes::Bytes;
use safetensors::tensor::{Dtype, TensorView, serialize};

/// Summed loss of `sequences`, packed, as a function of the adapter: f32 losses, added in f64.
struct Loss<'a> {
    decoder: &'a Decoder<CpuBackend>,
    layout: &'a LoraLayout,
    sequences: &'a [Sequence],
    dropout: DropoutKey,
}

impl Loss<'_> {
    fn at(&self, parameters: &[f32]) -> f64 {
        let backend = &**self.decoder.backend();
        let ids: Vec<u32> = self.sequences.iter().flat_map(|s| s.token_ids.clone()).collect();
        let lengths: Vec<u32> = self.sequences.iter().map(|s| s.token_ids.len() as u32).collect();
        let samples: Vec<u64> = self.sequences.iter().map(|s| s.sample).collect();
        let layout = PackedLayout::new(&lengths, &samples);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (sequence, first) in self.sequences.iter().zip(layout.bounds()) {
            for token in sequence.loss.iter().flat_map(|range| range.start..range.end) {
                rows.push(first + token - 1);
                targets.push(sequence.token_ids[token as usize]);
            }
        }
        let parameters = backend.upload_reals(parameters).unwrap();
        let adapter = Adapter { layout: self.layout, parameters: &parameters, dropout: Some(self.dropout) };
        let (batch, progress) = (Batch::new(backend, &ids, &layout).unwrap(), Progress::new());
        let pass = Pass { batch: &batch, adapter: Some(&adapter), progress: &progress };
        let hidden = self.decoder.hidden(&pass, &Rows::new(backend, &rows).unwrap()).unwrap();
        let mut losses = backend.reals(rows.len()).unwrap();
        let targets = backend.upload_indices(&targets).unwrap();
        backend.linear_cross_entropy(&hidden, self.decoder.head(), &targets, &mut losses, None).unwrap();
        backend.read_reals(&losses).unwrap().iter().map(|&loss| f64::from(loss)).sum()
    }
}

fn check(architecture: &Architecture) {
    check_run(architecture, &run_spec());
}

/// Every tensor's gradient, along itself and along random directions.
fn check_run(architecture: &Architecture, run: &RunSpec) {
    let decoder = decoder(architecture, 1);
    let mut trainer = trainer(&decoder, run);
    let vocabulary = architecture.vocab_size;
    let sequences = [sample(3, 13, 4, vocabulary), sample(9, 7, 1, vocabulary), sample(4, 18, 11, vocabulary)];
    let layout = trainer.layout().clone();
    let parameters = uniform("parameters", layout.parameters(), 0.25);
    let mut files = trainer.export_state().unwrap().files;
    files[0].1 = adapter_file(&layout, &parameters);
    let files: Vec<(String, Bytes)> = files.into_iter().map(|(name, bytes)| (name, bytes.into())).collect();
    trainer.import_state(0, &files).unwrap();

    let shard = shard(1, &[sequences.to_vec()]);
    let outcome = trainer.step(&shard, &mut Solo).unwrap();
    let loss_tokens = outcome.loss_tokens as f64;
    let dropout = DropoutKey { seed: run.seed, step: 1 };
    let loss = Loss { decoder: &decoder, layout: &layout, sequences: &sequences, dropout };
    assert!((loss.at(&parameters) / loss_tokens / outcome.loss - 1.0).abs() < 1e-6);

    let gradient: Vec<f64> = trainer.last_gradient().unwrap().iter().map(|&g| f64::from(g) * loss_tokens).collect();
    for tensor in layout.tensors() {
        let own = &gradient[tensor.range.clone()];
        let norm = own.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!(norm > 1e-3, "{}: the gradient vanishes, so nothing is tested", tensor.name);
        for direction in 0..3 {
            let direction = match direction {
                0 => own.to_vec(),
                n => uniform(&format!("{} {n}", tensor.name), own.len(), 1.0).into_iter().map(f64::from).collect(),
            };
            let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
            let slope_over = |step: f64| {
                let moved = |sign: f64| {
                    let mut moved = parameters.clone();
                    for (value, d) in moved[tensor.range.clone()].iter_mut().zip(&direction) {
                        *value = (f64::from(*value) + sign * step * d / length) as f32;
                    }
                    loss.at(&moved)
                };
                (moved(1.0) - moved(-1.0)) / (2.0 * step)
            };
            // Richardson's extrapolation takes the curvature out.
            let slope = (4.0 * slope_over(0.01) - slope_over(0.02)) / 3.0;
            let expected = own.iter().zip(&direction).map(|(g, d)| g * d).sum::<f64>() / length;
            let allowed = 0.01 * norm + 2e-3;
            assert!((slope - expected).abs() <= allowed, "{}: {slope} where {expected} is claimed", tensor.name);
        }
    }
}

fn adapter_file(layout: &LoraLayout, parameters: &[f32]) -> Vec<u8> {
    let bytes: Vec<u8> = parameters.iter().flat_map(|value| value.to_le_bytes()).collect();
    let views = layout.tensors().iter().map(|tensor| {
        let data = &bytes[4 * tensor.range.start..4 * tensor.range.end];
        (tensor.name.as_str(), TensorView::new(Dtype::F32, tensor.shape.to_vec(), data).unwrap())
    });
    serialize(views, None).unwrap()
}

#[test]
fn grouped_query_attention() {
    check(&Architecture::tiny());
}

#[test]
fn one_key_value_head() {
    check(&Architecture { kv_heads: 1, ..Architecture::tiny() });
}

#[test]
fn biases() {
    check(&Architecture { qkv_bias: true, output_bias: true, mlp_bias: true, ..Architecture::tiny() });
}

#[test]
fn query_and_key_norms() {
    check(&Architecture { qk_norm: true, ..Architecture::tiny() });
}

#[test]
fn gemma_switches() {
    check(&Architecture {
        norm_unit_offset: true,
        qk_norm: true,
        activation: Activation::GeluTanh,
        embedding_scale: 24f32.sqrt(),
        tied_embeddings: true,
        ..Architecture::tiny()
    });
}

#[test]
fn sliding_window() {
    check(&Architecture { sliding_window: Some(5), ..Architecture::tiny() });
}

#[test]
fn llama3_rotary_scaling() {
    let rope_scaling =
        RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 16 };
    check(&Architecture { rope_scaling, ..Architecture::tiny() });
}

#[test]
fn dropout() {
    let run = run_spec();
    let lora = run.lora.clone().map(|lora| Lora { dropout: 0.3, ..lora });
    check_run(&Architecture::tiny(), &RunSpec { lora, ..run });
}

/// The gradient stops at the lowest adapter, wherever in the layer that is.
#[test]
fn every_lowest_adapter() {
    for target in [&["v_proj"][..], &["o_proj"], &["up_proj"], &["down_proj"], &["k_proj", "gate_proj"]] {
        let run = run_spec();
        let target_modules = target.iter().map(ToString::to_string).collect();
        let lora = run.lora.clone().map(|lora| Lora { target_modules, ..lora });
        check_run(&Architecture::tiny(), &RunSpec { lora, ..run });
    }
}
