//! The f64 reference itself: its gradients are the slopes of its loss, so the decoder's backward pass is right.

use super::families;
use super::models::{decoder, parameters};
use super::step::MicroBatch;
use crate::support::uniform;
use ballast_kernels::reference::{ReferenceBackend, Rounding};
use ballast_worker::lora::LoraLayout;
use std::sync::Arc;

/// Of each tensor's gradient: along itself and a random direction at once. The parameters are f32 and the loss is f64, so
/// what counts is how far each parameter really moved. Richardson's extrapolation takes the curvature out.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let backend = Arc::new(ReferenceBackend::new(Rounding::Exact));
    for family in families() {
        let architecture = family.layers(2);
        let decoder = decoder(&backend, &architecture);
        let layout = LoraLayout::new(&architecture, &family.lora(0.1)).unwrap();
        let (parameters, batch) = (parameters(&layout), MicroBatch::new(&[9, 1, 6], architecture.vocab_size));
        let gradient = batch.step(&decoder, &layout, &parameters).gradient;
        let loss = |parameters: &[f32]| batch.step(&decoder, &layout, parameters).losses.iter().sum::<f64>();
        for tensor in layout.tensors() {
            let own = &gradient[tensor.range.clone()];
            let norm = own.iter().map(|g| g * g).sum::<f64>().sqrt();
            let noise = uniform(&tensor.name, own.len(), 1.0);
            let scale = (3.0 / own.len() as f64).sqrt();
            let direction: Vec<f64> = own.iter().zip(noise).map(|(g, n)| g / norm + scale * f64::from(n)).collect();
            let moved = |step: f64| {
                let mut moved = parameters.clone();
                for (value, d) in moved[tensor.range.clone()].iter_mut().zip(&direction) {
                    *value = (f64::from(*value) + step * d) as f32;
                }
                moved
            };
            // The measured change of the loss over the one that the gradient claims.
            let ratio = |step: f64| {
                let (above, below) = (moved(step), moved(-step));
                let way = above.iter().zip(&below).map(|(a, b)| f64::from(*a) - f64::from(*b));
                (loss(&above) - loss(&below)) / way.zip(&gradient).map(|(way, g)| way * g).sum::<f64>()
            };
            let error = ((4.0 * ratio(0.001) - ratio(0.002)) / 3.0 - 1.0).abs();
            assert!(error <= 1e-6, "{}, {}: {error:e}", family.name, tensor.name);
        }
    }
}
