//! Attention with a cache gives what attention over the whole sequence gives.

use super::source::poisoned;
use super::{Comparison, Source, ok, plain};
use crate::{AttentionShape, Backend, reference};

pub(super) fn compare<B: Backend>(b: &B) -> Vec<Comparison> {
    let mut source = Source::new(600);
    let mut all = Vec::new();
    for (heads, kv_heads, head_dim, window, steps) in [
        (1, 1, 16, None, vec![1]),
        (9, 3, 64, None, vec![31, 1, 1, 2, 1]),
        (3, 1, 16, Some(5), vec![33, 1, 7, 1]),
        (2, 2, 128, None, vec![1, 1, 1]),
        (1, 1, 16, None, vec![600, 1, 30]),
        (4, 2, 64, Some(50), vec![129, 1, 66]),
        (2, 1, 96, None, vec![65, 1, 31]),
        (2, 1, 128, Some(33), vec![64, 64, 1]),
        (2, 1, 256, None, vec![33, 1, 40]),
    ] {
        let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.2, window };
        let total: usize = steps.iter().sum();
        let (q, k, v) = (
            source.floats(total * heads * head_dim, 1.0),
            source.floats(total * kv_heads * head_dim, 1.0),
            source.floats(total * kv_heads * head_dim, 1.0),
        );
        let mut cache = ok(b.kv_cache(total, &shape));
        let (mut done, mut got) = (0, Vec::new());
        let (mut q_seen, mut k_seen, mut v_seen) = (Vec::new(), Vec::new(), Vec::new());
        for &count in &steps {
            let part = |values: &[f32], cols: usize| {
                ok(b.upload_activations(&values[done * cols..(done + count) * cols], count, cols))
            };
            let (q, k, v) = (part(&q, heads * head_dim), part(&k, kv_heads * head_dim), part(&v, kv_heads * head_dim));
            let mut out = poisoned(b, count, heads * head_dim);
            ok(b.attention_cached(&q, &k, &v, &mut cache, &shape, &mut out));
            got.extend(ok(b.read_activations(&out)));
            for (seen, matrix) in [(&mut q_seen, &q), (&mut k_seen, &k), (&mut v_seen, &v)] {
                seen.extend(super::widen(&ok(b.read_activations(matrix))));
            }
            done += count;
        }
        let (want, _) = reference::attention(&q_seen, &k_seen, &v_seen, &[0, total as u32], &shape);
        let bounds = [0, total as u32];
        let plain = plain::Attention { q: &q_seen, k: &k_seen, v: &v_seen, bounds: &bounds, shape: &shape };
        let what = format!("attention_cached {heads}/{kv_heads} heads of {head_dim}, {steps:?}, window {window:?}");
        all.push(Comparison::stored(what, got, want, 16.0).plainly(plain.forward().0));
        // The cache is full now.
        let (one_q, one_k) = (poisoned(b, 1, heads * head_dim), poisoned(b, 1, kv_heads * head_dim));
        let mut out = poisoned(b, 1, heads * head_dim);
        assert!(b.attention_cached(&one_q, &one_k, &one_k, &mut cache, &shape, &mut out).is_err());
    }
    all
}
