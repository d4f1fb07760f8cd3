//! Operands that do not fit together.

use super::ok;
use super::source::{poisoned, poisoned_reals};
use crate::{
    AdamW, AttentionShape, Backend, Bucket, Direction, GatedActivation, KernelError, LoraPath, NormKind, PackedLayout,
    Segment, Target,
};

/// The call failed with a shape error that names the operation.
fn refused(name: &str, result: Result<(), KernelError>) {
    match result {
        Err(KernelError::Shape { operation, .. }) => assert_eq!(operation, name),
        other => panic!("{name}: {other:?}"),
    }
}

pub(super) fn check<B: Backend>(b: &B) {
    buffers(b);
    layers(b);
    attention(b);
    heads_and_rows(b);
    optimizer(b);
}

fn buffers<B: Backend>(b: &B) {
    refused("activations", b.activations(0, 3).map(drop));
    refused("upload_activations", b.upload_activations(&[1.0; 5], 2, 3).map(drop));
    refused("write_reals", b.write_reals(&mut ok(b.reals(3)), &[0.0; 4]));
    refused("write_integers", b.write_integers(&mut ok(b.integers(3)), &[0; 2]));
    refused("read_integers", b.read_integers(&ok(b.integers(3)), &mut [0; 2]));
    refused("upload_packing", b.upload_packing(&PackedLayout::new(&[2, 0], &[0, 1])).map(drop));
    refused("pack_linear", b.pack_linear(&[0.0; 5], 2, 3, None).map(drop));
    refused("pack_linear", b.pack_linear(&[0.0; 6], 2, 3, Some(&[0.0; 3])).map(drop));
    refused("pack_embedding", b.pack_embedding(&[0.0; 5], 2, 3).map(drop));
    refused("upload_rotary", b.upload_rotary(&[0.0; 4], &[0.0; 6], 2).map(drop));
}

fn layers<B: Backend>(b: &B) {
    let (x, mut y) = (poisoned(b, 2, 3), poisoned(b, 2, 4));
    let weight = ok(b.pack_linear(&[0.0; 15], 5, 3, None));
    refused("linear", b.linear(&x, &weight, None, &mut y));
    refused("linear_backward", b.linear_backward(&y, &x, &weight, None, None));
    let (parameters, mut d_parameters) = (poisoned_reals(b, 20), poisoned_reals(b, 20));
    let mut y = poisoned(b, 2, 5);
    let mut down = poisoned_reals(b, 4);
    let path = |a, b, rank| LoraPath::<B> { parameters: &parameters, a, b, rank, scaling: 1.0, dropout: None };
    refused("linear", b.linear(&x, &weight, Some((&path(0..6, 6..15, 2), &mut down)), &mut y));
    refused("linear", b.linear(&x, &weight, Some((&path(0..6, 11..21, 2), &mut down)), &mut y));
    let mut short = poisoned_reals(b, 3);
    refused("linear", b.linear(&x, &weight, Some((&path(0..6, 6..16, 2), &mut short)), &mut y));
    let mut wrong = poisoned(b, 3, 3);
    let lora = Some((&path(0..6, 6..16, 2), &down, &mut d_parameters));
    refused("linear_backward", b.linear_backward(&y, &x, &weight, lora, Some(Target::Add(&mut wrong))));

    let (mut x, mut out) = (poisoned(b, 2, 6), poisoned(b, 2, 6));
    let (weight, mut inv_rms) = (poisoned_reals(b, 4), poisoned_reals(b, 2));
    refused("add_rms_norm", b.add_rms_norm(&mut x, None, &weight, 1e-5, NormKind::Plain, &mut out, &mut inv_rms));
    let target = Target::Overwrite(&mut out);
    refused("rms_norm_backward", b.rms_norm_backward(&x, &x, &weight, NormKind::Plain, &inv_rms, target));
    let narrow = poisoned(b, 2, 5);
    refused("gated", b.gated(&x, &narrow, GatedActivation::Silu, &mut out));
    refused("add", b.add(&mut x, &narrow));
}

fn attention<B: Backend>(b: &B) {
    let packing = ok(b.upload_packing(&PackedLayout::new(&[3, 1], &[0, 1])));
    let mut shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 4, scale: 1.0, window: None };
    let (q, k, mut out) = (poisoned(b, 4, 8), poisoned(b, 4, 4), poisoned(b, 4, 8));
    let mut saved = poisoned_reals(b, 7);
    refused("attention", b.attention(&q, &k, &k, &packing, &shape, &mut out, &mut saved));
    let mut saved = poisoned_reals(b, 8);
    refused("attention", b.attention(&q, &q, &k, &packing, &shape, &mut out, &mut saved));
    shape.window = Some(0);
    refused("attention", b.attention(&q, &k, &k, &packing, &shape, &mut out, &mut saved));
    shape = AttentionShape { heads: 3, kv_heads: 2, ..shape };
    refused("kv_cache", b.kv_cache(4, &shape).map(drop));
    let tables = ok(b.upload_rotary(&[1.0; 4], &[0.0; 4], 2));
    let mut x = poisoned(b, 4, 8);
    refused("rotary", b.rotary(&mut x, 2, &tables, &packing, Direction::Forward));
}

fn heads_and_rows<B: Backend>(b: &B) {
    let table = ok(b.pack_embedding(&[0.0; 12], 4, 3));
    let beyond = ok(b.upload_indices(&[0, 4]));
    let mut out = poisoned(b, 2, 3);
    refused("embedding", b.embedding(&table, &beyond, 1.0, &mut out));
    let x = poisoned(b, 4, 3);
    refused("gather_rows", b.gather_rows(&x, &beyond, &mut out));
    let mut x = x;
    refused("scatter_rows", b.scatter_rows(&out, &beyond, &mut x));
    let head = ok(b.tied_head(&table));
    let mut losses = poisoned_reals(b, 2);
    refused("linear_cross_entropy", b.linear_cross_entropy(&out, &head, &beyond, &mut losses, None));
    refused("log_probabilities", b.log_probabilities(&out, &head, &beyond, &mut losses));
    refused("logits", b.logits(&out, &head, &mut losses));
}

fn optimizer<B: Backend>(b: &B) {
    let gradient = poisoned_reals(b, 10);
    let (mut sums, mut flags) = (ok(b.integers(10)), ok(b.integers(2)));
    let segment = |range, exponent| Segment { range, exponent };
    for segments in [
        [segment(0..6, 0), segment(5..10, 0)],
        [segment(5..10, 0), segment(0..5, 0)],
        [segment(0..5, 0), segment(5..11, 0)],
        [segment(0..5, 0), segment(5..10, 2000)],
    ] {
        refused(
            "accumulate_fixed",
            b.accumulate_fixed(&gradient, &Bucket::whole(&segments, 10), 40, &mut sums, &mut flags),
        );
    }
    let sound = [segment(0..5, 0), segment(5..10, 0)];
    refused("accumulate_fixed", b.accumulate_fixed(&gradient, &Bucket::whole(&sound, 10), 63, &mut sums, &mut flags));
    refused(
        "accumulate_fixed",
        b.accumulate_fixed(&gradient, &Bucket::whole(&sound[..1], 10), 40, &mut sums, &mut flags),
    );
    let whole = Bucket::whole(&sound, 10);
    for bucket in [
        Bucket { members: 1..3, ..whole.clone() },
        Bucket { members: 0..1, elements: 1..11, ..whole.clone() },
        Bucket { elements: 5..15, ..whole.clone() },
        Bucket { members: 1..2, elements: 5..10, ..whole.clone() },
    ] {
        refused("accumulate_fixed", b.accumulate_fixed(&gradient, &bucket, 40, &mut sums, &mut flags));
        refused("fixed_to_gradient", b.fixed_to_gradient(&sums, &bucket, 1.0, &mut ok(b.reals(10))));
    }
    let mut part = poisoned_reals(b, 4);
    refused("add_scaled", b.add_scaled(&mut part, 1.0, &gradient, 7));
    refused("copy_reals", b.copy_reals(&gradient, &mut part, 0));
    let mut halves = ok(b.halves(5));
    refused("narrow", b.narrow(&part, &mut halves));
    refused("widen", b.widen(&halves, &mut part, 0));
    refused("write_halves", b.write_halves(&mut halves, &[0.0; 4]));
    refused("copy_reals", b.copy_reals(&part, &mut ok(b.reals(10)), 7));
    let settings = AdamW {
        learning_rate: 1.0,
        beta1: 0.9,
        beta2: 0.9,
        epsilon: 0.0,
        weight_decay: 0.0,
        step: 0,
        gradient_scale: 1.0,
    };
    let (mut p, mut m, mut v) = (poisoned_reals(b, 10), poisoned_reals(b, 10), poisoned_reals(b, 9));
    refused("adamw", b.adamw(&mut p, &gradient, &mut m, &mut v, &settings));
}
