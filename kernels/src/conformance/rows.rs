//! Embedding, gather, scatter, add.

use super::source::poisoned;
use super::{Comparison, Source, ok};
use crate::{Backend, reference};

pub(super) fn compare<B: Backend>(b: &B) -> Vec<Comparison> {
    let mut source = Source::new(100);
    let mut all = Vec::new();
    for (rows, cols, picked) in [(1, 1, vec![0]), (31, 33, vec![30, 0, 7]), (129, 576, (0..129).rev().collect())] {
        let case = format!("[{rows}, {cols}]");
        let values = source.frozen(b, rows, cols, 1.0);
        let table = ok(b.pack_embedding(&values, rows, cols));
        let stored = super::widen(&values);
        let ids = source.indices(127, rows);
        let mut out = poisoned(b, ids.len(), cols);
        ok(b.embedding(&table, &ok(b.upload_indices(&ids)), 1.5, &mut out));
        let want = reference::embedding(&stored, cols, &ids, 1.5);
        all.push(Comparison::stored(format!("embedding {case}"), ok(b.read_activations(&out)), want, 2.0));

        let (mut x, x_stored) = source.matrix(b, rows, cols, 1.0);
        let indices = ok(b.upload_indices(&picked));
        let mut out = poisoned(b, picked.len(), cols);
        ok(b.gather_rows(&x, &indices, &mut out));
        let want = reference::gather_rows(&x_stored, cols, &picked);
        all.push(Comparison::stored(format!("gather_rows {case}"), ok(b.read_activations(&out)), want, 0.0));

        let (d_out, d_stored) = source.matrix(b, picked.len(), cols, 1.0);
        let mut d_x = poisoned(b, rows, cols);
        ok(b.scatter_rows(&d_out, &indices, &mut d_x));
        let want = reference::scatter_rows(&d_stored, cols, &picked, rows);
        all.push(Comparison::stored(format!("scatter_rows {case}"), ok(b.read_activations(&d_x)), want, 0.0));

        let (y, y_stored) = source.matrix(b, rows, cols, 1.0);
        ok(b.add(&mut x, &y));
        let want = x_stored.iter().zip(&y_stored).map(|(x, y)| x + y).collect();
        all.push(Comparison::stored(format!("add {case}"), ok(b.read_activations(&x)), want, 2.0));
    }
    all
}
