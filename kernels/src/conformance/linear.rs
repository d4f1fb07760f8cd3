//! Frozen linear layers: plain, with bias, with a low-rank path, with dropout; all targets.

use super::source::{poisoned, poisoned_reals};
use super::{Comparison, Source, ok, plain};
use crate::reference::{self, LinearShape, Lora};
use crate::{Backend, Dropout, LoraPath, PackedLayout, Target};

struct Case {
    lengths: &'static [u32],
    inp: usize,
    out: usize,
    rank: usize,
    bias: bool,
    dropout: Option<f32>,
}

const CASES: &[Case] = &[
    Case { lengths: &[1], inp: 1, out: 1, rank: 1, bias: false, dropout: None },
    Case { lengths: &[1], inp: 576, out: 192, rank: 16, bias: true, dropout: None },
    Case { lengths: &[1, 1], inp: 33, out: 31, rank: 3, bias: true, dropout: Some(0.5) },
    Case { lengths: &[31], inp: 64, out: 127, rank: 8, bias: false, dropout: Some(0.1) },
    Case { lengths: &[20, 13], inp: 127, out: 1, rank: 2, bias: false, dropout: Some(0.0) },
    Case { lengths: &[100, 29], inp: 576, out: 129, rank: 16, bias: false, dropout: Some(0.1) },
    Case { lengths: &[127], inp: 1000, out: 33, rank: 1, bias: true, dropout: None },
    Case { lengths: &[2], inp: 129, out: 1000, rank: 64, bias: false, dropout: Some(0.9) },
    Case { lengths: &[600, 1, 399], inp: 65, out: 33, rank: 4, bias: false, dropout: Some(0.25) },
    Case { lengths: &[1000], inp: 33, out: 65, rank: 4, bias: true, dropout: None },
    // Longer on every side than a backend is likely to sum at once.
    Case { lengths: &[1000, 99], inp: 1030, out: 5, rank: 17, bias: false, dropout: Some(0.1) },
    Case { lengths: &[3], inp: 40, out: 1100, rank: 200, bias: false, dropout: None },
];

pub(super) fn compare<B: Backend>(b: &B) -> Vec<Comparison> {
    compare_up_to(b, usize::MAX)
}

/// Without the largest products.
pub(super) fn compare_short<B: Backend>(b: &B) -> Vec<Comparison> {
    compare_up_to(b, 200_000)
}

fn compare_up_to<B: Backend>(b: &B, largest: usize) -> Vec<Comparison> {
    let mut source = Source::new(300);
    CASES
        .iter()
        .filter(|case| layout(case).tokens() * case.inp <= largest)
        .flat_map(|case| with_path(b, &mut source, case).into_iter().chain(plain(b, &mut source, case)))
        .collect()
}

fn name(case: &Case) -> String {
    let Case { lengths, inp, out, rank, bias, dropout } = case;
    format!("{lengths:?} {inp} -> {out}, rank {rank}, bias {bias}, dropout {dropout:?}")
}

fn layout(case: &Case) -> PackedLayout {
    let samples: Vec<u64> = (0..case.lengths.len() as u64).map(|sample| 1000 * sample + 7).collect();
    PackedLayout::new(case.lengths, &samples)
}

fn plain<B: Backend>(b: &B, source: &mut Source, case: &Case) -> Vec<Comparison> {
    let shape = LinearShape { rows: layout(case).tokens(), inp: case.inp, out: case.out };
    let values = source.frozen(b, case.out, case.inp, 0.1);
    let weight = ok(b.pack_linear(&values, case.out, case.inp, None));
    let w = super::widen(&values);
    let (x, x_stored) = source.matrix(b, shape.rows, case.inp, 1.0);
    let (d_y, d_stored) = source.matrix(b, shape.rows, case.out, 1.0);
    let mut y = poisoned(b, shape.rows, case.out);
    ok(b.linear(&x, &weight, None, &mut y));
    let (want, _) = reference::linear(shape, &x_stored, &w, None, None);
    let mut all =
        vec![Comparison::stored(format!("linear, plain {}", name(case)), ok(b.read_activations(&y)), want, 16.0)];

    let gradient = reference::linear_backward(shape, &d_stored, &x_stored, &w, None).d_x;
    let mut d_x = poisoned(b, shape.rows, case.inp);
    ok(b.linear_backward(&d_y, &x, &weight, None, Some(Target::Overwrite(&mut d_x))));
    let what = format!("linear_backward d_x, plain {}", name(case));
    all.push(Comparison::stored(what, ok(b.read_activations(&d_x)), gradient, 16.0));
    all
}

fn with_path<B: Backend>(b: &B, source: &mut Source, case: &Case) -> Vec<Comparison> {
    let layout = layout(case);
    let shape = LinearShape { rows: layout.tokens(), inp: case.inp, out: case.out };
    let Case { inp, out, rank, .. } = *case;
    let packing = ok(b.upload_packing(&layout));
    let (values, bias) = (source.frozen(b, out, inp, 0.1), source.frozen(b, 1, out, 0.5));
    let weight = ok(b.pack_linear(&values, out, inp, case.bias.then_some(&bias[..])));
    let (w, bias) = (super::widen(&values), super::widen(&bias));
    // The path's parameters lie within a longer vector, B before A.
    let (b_range, a_range) = (5..5 + out * rank, 8 + out * rank..8 + out * rank + rank * inp);
    let (parameters, p) = source.vector(b, a_range.end + 3, 0.2);
    let (seed, step, module) = (0x0123_4567_89ab_cdef, 41, 17);
    let path = LoraPath::<B> {
        parameters: &parameters,
        a: a_range.clone(),
        b: b_range.clone(),
        rank,
        scaling: 1.75,
        dropout: case.dropout.map(|probability| Dropout { probability, seed, step, module, packing: &packing }),
    };
    let mask = reference::dropout_mask(&layout, inp, case.dropout.unwrap_or(0.0), seed, step, module);
    let lora = Lora { a: &p[a_range.clone()], b: &p[b_range.clone()], rank, scaling: 1.75, mask: &mask };

    let (x, x_stored) = source.matrix(b, shape.rows, inp, 1.0);
    let mut y = poisoned(b, shape.rows, out);
    let mut down = poisoned_reals(b, shape.rows * rank);
    ok(b.linear(&x, &weight, Some((&path, &mut down)), &mut y));
    let (want, want_down) = reference::linear(shape, &x_stored, &w, case.bias.then_some(&bias[..]), Some(lora));
    let (plain_y, plain_down) = plain::linear(shape, &x_stored, &w, case.bias.then_some(&bias[..]), lora);
    let mut all = vec![
        Comparison::stored(format!("linear y {}", name(case)), ok(b.read_activations(&y)), want, 16.0).plainly(plain_y),
        Comparison::real(format!("linear down {}", name(case)), ok(b.read_reals(&down)), want_down, 16.0)
            .plainly(plain_down),
    ];

    let (d_y, d_stored) = source.matrix(b, shape.rows, out, 1.0);
    let want = reference::linear_backward(shape, &d_stored, &x_stored, &w, Some(lora));
    let plain = plain::linear_backward(shape, &d_stored, &x_stored, &w, lora);
    for (target, add) in [("overwritten", false), ("added", true), ("unwanted", true)] {
        let mut d_parameters = poisoned_reals(b, p.len());
        let (mut d_x, before) = source.matrix(b, shape.rows, inp, 1.0);
        let wanted = match (target, add) {
            ("unwanted", _) => None,
            (_, true) => Some(Target::Add(&mut d_x)),
            (_, false) => Some(Target::Overwrite(&mut d_x)),
        };
        ok(b.linear_backward(&d_y, &x, &weight, Some((&path, &down, &mut d_parameters)), wanted));
        let on_top = |gradient: &[f64]| -> Vec<f64> {
            gradient.iter().zip(&before).map(|(gradient, before)| gradient + before).collect()
        };
        let (expected, plain_d_x) = match target {
            "overwritten" => (want.d_x.clone(), plain.d_x.clone()),
            "added" => (on_top(&want.d_x), plain::rounded(&on_top(&plain.d_x))),
            _ => (before.clone(), before),
        };
        let what = |output| format!("linear_backward {output}, d_x {target} {}", name(case));
        let gradients = ok(b.read_reals(&d_parameters));
        all.push(Comparison::stored(what("d_x"), ok(b.read_activations(&d_x)), expected, 16.0).plainly(plain_d_x));
        all.push(
            Comparison::real(what("d_a"), gradients[a_range.clone()].to_vec(), want.d_a.clone(), 24.0)
                .plainly(plain.d_a.clone()),
        );
        all.push(
            Comparison::real(what("d_b"), gradients[b_range.clone()].to_vec(), want.d_b.clone(), 24.0)
                .plainly(plain.d_b.clone()),
        );
        let outside = gradients.iter().enumerate().filter(|(i, _)| !a_range.contains(i) && !b_range.contains(i));
        assert!(outside.into_iter().all(|(_, value)| value.is_nan()), "gradients outside the path were written");
    }
    all
}
