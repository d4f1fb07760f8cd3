//! Attention over a prefix that is there once, beside sequences that each have it.

use crate::conformance::Source;
use crate::cpu::{CpuBackend, Matrix};
use crate::{AttentionShape, Backend, PackedLayout};

/// Sequences that begin with the same `prefix` rows.
struct Case {
    shape: AttentionShape,
    prefix: usize,
    lengths: Vec<u32>,
}

fn case(heads: usize, kv_heads: usize, prefix: usize, lengths: &[u32], window: Option<usize>) -> Case {
    let head_dim = 16;
    let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.25, window };
    Case { shape, prefix, lengths: lengths.to_vec() }
}

/// Rows of a matrix, by sequence: first those of the prefix, then what each sequence has after them.
type Parts = Vec<Vec<Vec<f32>>>;

impl Case {
    fn samples(&self) -> Vec<u64> {
        (0..self.lengths.len() as u64).collect()
    }

    fn parts(&self, source: &mut Source, cols: usize) -> Parts {
        let own = self.lengths.iter().map(|&length| length as usize - self.prefix);
        let rows = std::iter::once(self.prefix).chain(own);
        rows.map(|rows| (0..rows).map(|_| source.floats(cols, 1.0)).collect()).collect()
    }
}

/// The prefix once, then the others.
fn once(parts: &Parts) -> Vec<f32> {
    parts.concat().concat()
}

/// The prefix before each of the others.
fn in_each(parts: &Parts) -> Vec<f32> {
    parts[1..].iter().flat_map(|own| [parts[0].concat(), own.concat()].concat()).collect()
}

/// What attention and its gradients give: out, d_q, d_k, d_v.
fn attend(b: &CpuBackend, shape: &AttentionShape, layout: &PackedLayout, operands: [Vec<f32>; 4]) -> [Vec<f32>; 4] {
    let (rows, q_cols, kv_cols) = (layout.tokens(), shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let packing = b.upload_packing(layout).unwrap();
    let matrix = |values: &[f32], cols| b.upload_activations(values, rows, cols).unwrap();
    let [q, k, v, d_out] = operands;
    let (q, k, v, d_out) = (matrix(&q, q_cols), matrix(&k, kv_cols), matrix(&v, kv_cols), matrix(&d_out, q_cols));
    let nan = |cols| matrix(&vec![f32::NAN; rows * cols], cols);
    let (mut out, mut saved) = (nan(q_cols), b.reals(rows * shape.heads).unwrap());
    b.attention(&q, &k, &v, &packing, shape, &mut out, &mut saved).unwrap();
    let (mut d_q, mut d_k, mut d_v) = (nan(q_cols), nan(kv_cols), nan(kv_cols));
    b.attention_backward(&d_out, &q, &k, &v, &out, &saved, &packing, shape, &mut d_q, &mut d_k, &mut d_v).unwrap();
    [out, d_q, d_k, d_v].map(|m: Matrix| b.read_activations(&m).unwrap())
}

/// Of rows `[prefix, own 1, prefix, own 2, ...]`, the prefix's by `join` over all sequences, then the own ones.
fn gathered(case: &Case, rows: &[f32], cols: usize, join: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    let of_prefix = case.prefix * cols;
    let (mut prefix, mut own, mut rest): (Option<Vec<f32>>, _, _) = (None, Vec::new(), rows);
    for &length in &case.lengths {
        let (sequence, after) = rest.split_at(length as usize * cols);
        let copy = &sequence[..of_prefix];
        prefix = Some(match prefix {
            None => copy.to_vec(),
            Some(sum) => sum.iter().zip(copy).map(|(&a, &b)| join(a, b)).collect(),
        });
        own.extend_from_slice(&sequence[of_prefix..]);
        rest = after;
    }
    [prefix.unwrap(), own].concat()
}

fn distance(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let norm = want.iter().map(|x| x * x).sum::<f32>().sqrt();
    got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt() / norm
}

#[test]
fn a_prefix_that_is_there_once_gives_what_one_in_each_sequence_gives() {
    let cases = [
        case(3, 1, 1, &[2, 3], None),
        case(4, 2, 24, &[60, 25, 130], None),
        case(9, 3, 40, &[41, 41], None),
        case(2, 2, 600, &[640, 601, 1300], None),
        case(2, 1, 20, &[90, 21], Some(30)),
        case(2, 1, 50, &[60, 200], Some(7)),
    ];
    for case in cases {
        let Case { shape, prefix, lengths, .. } = &case;
        let (q_cols, kv_cols) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut source = Source::new(9);
        let parts = [q_cols, kv_cols, kv_cols, q_cols].map(|cols| case.parts(&mut source, cols));
        let apart = PackedLayout::new(lengths, &case.samples());
        let together = PackedLayout::sharing(*prefix as u32, lengths, &case.samples());

        let b = CpuBackend::new(1).unwrap();
        let in_use = b.memory().in_use;
        // The gradient that reaches the prefix from above is the sum over all; here each copy gets its share of it.
        let mut shared_above = parts.each_ref().map(once);
        let whole = prefix * q_cols;
        shared_above[3][..whole].iter_mut().for_each(|x| *x *= lengths.len() as f32);
        let got = attend(&b, shape, &together, shared_above.clone());
        let want = attend(&b, shape, &apart, parts.each_ref().map(in_each));
        assert_eq!(b.memory().in_use, in_use, "scratch was not returned");
        let what = format!("{shape:?}, {prefix} of {lengths:?}");
        let [out, gradients @ ..] = &want;
        let out = gathered(&case, out, q_cols, |first, _| first);
        assert!(distance(&got[0], &out) < 1e-6, "out, {what}: {}", distance(&got[0], &out));
        for ((got, want), cols) in got[1..].iter().zip(gradients).zip([q_cols, kv_cols, kv_cols]) {
            let want = gathered(&case, want, cols, |a, b| a + b);
            assert!(distance(got, &want) < 2e-6, "gradient, {what}: {}", distance(got, &want));
        }
        for threads in [2, 3] {
            let again = attend(&CpuBackend::new(threads).unwrap(), shape, &together, shared_above.clone());
            let bits = |all: &[Vec<f32>; 4]| all.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&again) == bits(&got), "{what}: other bits with {threads} threads");
        }
    }
}
