//! Decoding on the CUDA backend, beside the CPU's.

use super::families;
use super::models::{decoder, parameters};
use crate::support::sample;
use ballast_basemodel::ModelSource;
use ballast_kernels::Backend;
use ballast_kernels::conformance::distance;
use ballast_kernels::cpu::CpuBackend;
use ballast_kernels::cuda::{CudaBackend, Storage};
use ballast_worker::generate::{Limits, greedy};
use ballast_worker::lora::{Adapter, LoraLayout};
use ballast_worker::model::Decoder;
use ballast_worker::progress::Progress;
use std::path::Path;
use std::sync::Arc;

fn cuda() -> Arc<CudaBackend> {
    Arc::new(CudaBackend::new(0, Storage::F32).unwrap())
}

fn cpu() -> Arc<CpuBackend> {
    Arc::new(CpuBackend::new(1).unwrap())
}

/// Logits after a prompt, then after each of some more tokens, with an adapter.
fn logits<B: Backend>(decoder: &Decoder<B>, layout: &LoraLayout, pieces: &[&[u32]]) -> Vec<Vec<f32>> {
    let parameters = decoder.backend().upload_reals(&parameters(layout)).unwrap();
    let adapter = Adapter { layout, parameters: &parameters, dropout: None };
    let mut cache = decoder.cache(pieces.iter().map(|piece| piece.len()).sum()).unwrap();
    let mut next = |ids: &&[u32]| decoder.continue_sequence(ids, &mut cache, Some(&adapter), &Progress::new()).unwrap();
    pieces.iter().map(&mut next).collect()
}

#[test]
fn logits_are_those_of_the_cpu() {
    for family in families() {
        let architecture = family.layers(2);
        let layout = LoraLayout::new(&architecture, &family.lora(0.0)).unwrap();
        let ids = sample(5, 41, 1, architecture.vocab_size).token_ids;
        let pieces = [&ids[..33], &ids[33..34], &ids[34..35], &ids[35..]];
        let want = logits(&decoder(&cpu(), &architecture), &layout, &pieces);
        let got = logits(&decoder(&cuda(), &architecture), &layout, &pieces);
        for (piece, (got, want)) in got.iter().zip(&want).enumerate() {
            let want: Vec<f64> = want.iter().copied().map(f64::from).collect();
            let distance = distance(got, &want);
            assert!(distance <= 1e-5, "{}: logits after piece {piece} are off by {distance:e}", family.name);
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    // Cargo also tells where this package lies when it runs a test, as does whoever runs one without cargo, elsewhere.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let source = Path::new(&package).join("tests/fixtures/peft-tiny/model");
    let model = ModelSource::parse(source.to_str().unwrap(), None).unwrap().fetch().unwrap();
    let (on_cpu, on_cuda) = (Decoder::load(&cpu(), &model).unwrap(), Decoder::load(&cuda(), &model).unwrap());
    let prompt = sample(1, 9, 1, model.architecture().vocab_size).token_ids;
    let (limits, progress) = (Limits { max_new_tokens: 24, stop_ids: &[] }, Progress::new());
    let want = greedy(&on_cpu, None, &prompt, limits, &progress).unwrap();
    assert_eq!(greedy(&on_cuda, None, &prompt, limits, &progress).unwrap(), want);
    assert!(want.iter().any(|token| token != &want[0]), "{want:?}");
}
