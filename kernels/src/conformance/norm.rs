//! RMSNorm of rows and of heads, both kinds, with and without the residual.

use super::source::{poisoned, poisoned_reals};
use super::{Comparison, Source, ok};
use crate::{Backend, NormKind, Target, reference};

const EPS: f32 = 1e-5;

pub(super) fn compare<B: Backend>(b: &B) -> Vec<Comparison> {
    let mut source = Source::new(200);
    let mut all = Vec::new();
    // Rows, groups a row, elements a group.
    for (rows, groups, group) in
        [(1, 1, 1), (1, 1, 576), (2, 1, 31), (33, 3, 64), (127, 9, 16), (1000, 1, 129), (3, 1, 1000)]
    {
        for kind in [NormKind::Plain, NormKind::UnitOffset] {
            for residual in [false, true] {
                all.extend(one(b, &mut source, (rows, groups, group), kind, residual));
            }
        }
    }
    all
}

fn one<B: Backend>(
    b: &B,
    source: &mut Source,
    (rows, groups, group): (usize, usize, usize),
    kind: NormKind,
    residual: bool,
) -> Vec<Comparison> {
    let cols = groups * group;
    let case = format!("[{rows}, {groups} x {group}] {kind:?}, residual {residual}");
    let (mut x, x_stored) = source.matrix(b, rows, cols, 1.5);
    let (delta, delta_stored) = source.matrix(b, rows, cols, 0.5);
    let (weight, w) = source.vector(b, group, 0.8);
    let (mut out, mut inv_rms) = (poisoned(b, rows, cols), poisoned_reals(b, rows * groups));
    ok(b.add_rms_norm(&mut x, residual.then_some(&delta), &weight, EPS, kind, &mut out, &mut inv_rms));

    let added: Vec<f64> = match residual {
        true => x_stored.iter().zip(&delta_stored).map(|(x, delta)| x + delta).collect(),
        false => x_stored,
    };
    let after = ok(b.read_activations(&x));
    let sum = Comparison::stored(format!("add_rms_norm x {case}"), after.clone(), added, 2.0);
    // From here on the reference takes the sum as the device stored it.
    let added = super::widen(&after);
    let (want, want_inv) = reference::rms_norm(&added, &w, f64::from(EPS), kind);
    let (d_out, d_stored) = source.matrix(b, rows, cols, 1.0);
    let gradient = reference::rms_norm_backward(&d_stored, &added, &w, kind, &want_inv);
    let mut all = vec![
        sum,
        Comparison::stored(format!("add_rms_norm out {case}"), ok(b.read_activations(&out)), want, 8.0),
        Comparison::real(format!("add_rms_norm inv_rms {case}"), ok(b.read_reals(&inv_rms)), want_inv, 8.0),
    ];

    let mut d_x = poisoned(b, rows, cols);
    ok(b.rms_norm_backward(&d_out, &x, &weight, kind, &inv_rms, Target::Overwrite(&mut d_x)));
    // A group of one has a gradient of nearly zero: the difference of nearly equal terms.
    let units = if group == 1 { 1e6 } else { 16.0 };
    all.push(Comparison::stored(
        format!("rms_norm_backward {case}"),
        ok(b.read_activations(&d_x)),
        gradient.clone(),
        units,
    ));

    let (mut d_x, before) = source.matrix(b, rows, cols, 1.0);
    ok(b.rms_norm_backward(&d_out, &x, &weight, kind, &inv_rms, Target::Add(&mut d_x)));
    let want = before.iter().zip(&gradient).map(|(before, gradient)| before + gradient).collect();
    all.push(Comparison::stored(format!("rms_norm_backward, added {case}"), ok(b.read_activations(&d_x)), want, 16.0));
    all
}
