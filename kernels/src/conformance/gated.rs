//! Gated activations.

use super::source::poisoned;
use super::{Comparison, Source, ok};
use crate::{Backend, GatedActivation, reference};

pub(super) fn compare<B: Backend>(b: &B) -> Vec<Comparison> {
    let mut source = Source::new(700);
    let mut all = Vec::new();
    for activation in [GatedActivation::Silu, GatedActivation::GeluTanh] {
        for (rows, cols, deviation) in [(1, 1, 1.0), (2, 31, 1.0), (33, 129, 4.0), (127, 1536, 1.0), (1, 1000, 30.0)] {
            let case = format!("{activation:?} [{rows}, {cols}], deviation {deviation}");
            let (gate, g) = source.matrix(b, rows, cols, deviation);
            let (up, u) = source.matrix(b, rows, cols, 1.0);
            let mut out = poisoned(b, rows, cols);
            ok(b.gated(&gate, &up, activation, &mut out));
            let want = reference::gated(&g, &u, activation);
            all.push(Comparison::stored(format!("gated {case}"), ok(b.read_activations(&out)), want, 8.0));

            let (d_out, d) = source.matrix(b, rows, cols, 1.0);
            let (mut d_gate, mut d_up) = (poisoned(b, rows, cols), poisoned(b, rows, cols));
            ok(b.gated_backward(&d_out, &gate, &up, activation, &mut d_gate, &mut d_up));
            let (want_gate, want_up) = reference::gated_backward(&d, &g, &u, activation);
            all.push(Comparison::stored(format!("d_gate {case}"), ok(b.read_activations(&d_gate)), want_gate, 16.0));
            all.push(Comparison::stored(format!("d_up {case}"), ok(b.read_activations(&d_up)), want_up, 8.0));
        }
    }
    all
}
