//! Operations that are bound by memory: rows, norms, rotary embedding, gates, vectors of parameters.

use crate::case::{Case, Kernel, Size, matrix};
use ballast_kernels::cuda::{CudaBackend, IndexVector, Storage};
use ballast_kernels::{
    AdamW, Backend, Bucket, Direction, GatedActivation, KernelError, NormKind, PackedLayout, Segment, Target,
};

const HEAD: usize = 64;

pub(crate) fn row_cases(size: Size, storage: Storage) -> Vec<Case> {
    let (tokens, hidden, bytes) = (size.tokens, size.hidden, storage.bytes());
    let (elements, shape) = (tokens * hidden, [tokens, hidden]);
    let typed = |name: &str, floor: usize| Kernel::typed(name, storage, floor);
    // The last half of the rows, as answers are.
    let answers = move |b: &CudaBackend| -> Result<IndexVector, KernelError> {
        b.upload_indices(&((tokens / 2) as u32..tokens as u32).collect::<Vec<_>>())
    };
    let rotary = |heads: usize| {
        let floor = 2 * tokens * heads * HEAD * bytes + tokens * (4 * HEAD + 4);
        Case::new("rotary", &[tokens, heads, HEAD], vec![typed("rotary", floor)], move |b| {
            let angles = vec![0.5; tokens * HEAD / 2];
            let tables = b.upload_rotary(&angles, &angles, HEAD / 2)?;
            let packing = b.upload_packing(&PackedLayout::new(&[tokens as u32], &[0]))?;
            b.rotary(&mut matrix(b, tokens, heads * HEAD)?, heads, &tables, &packing, Direction::Forward)
        })
    };
    vec![
        Case::new("embedding", &shape, vec![typed("gather_rows", 2 * elements * bytes + 4 * tokens)], move |b| {
            let table = b.pack_embedding(&vec![0.5; elements], tokens, hidden)?;
            let ids: Vec<u32> = (0..tokens as u32).rev().collect();
            b.embedding(&table, &b.upload_indices(&ids)?, 2.0, &mut matrix(b, tokens, hidden)?)
        }),
        Case::new("gather_rows", &shape, vec![typed("gather_rows", elements * bytes + 2 * tokens)], move |b| {
            let mut out = b.activations(tokens / 2, hidden)?;
            b.gather_rows(&matrix(b, tokens, hidden)?, &answers(b)?, &mut out)
        }),
        Case::new(
            "scatter_rows",
            &shape,
            vec![
                Kernel::plain("invert_rows", 4 * tokens),
                typed("scatter_rows", elements / 2 * 3 * bytes + 4 * tokens),
            ],
            move |b| {
                let d_out = matrix(b, tokens / 2, hidden)?;
                b.scatter_rows(&d_out, &answers(b)?, &mut matrix(b, tokens, hidden)?)
            },
        ),
        Case::new("add", &shape, vec![typed("add", 3 * elements * bytes)], move |b| {
            b.add(&mut matrix(b, tokens, hidden)?, &matrix(b, tokens, hidden)?)
        }),
        rotary(hidden / HEAD),
        rotary(4),
    ]
}

pub(crate) fn norm_cases(size: Size, storage: Storage) -> Vec<Case> {
    let (tokens, hidden, bytes) = (size.tokens, size.hidden, storage.bytes());
    let elements = tokens * hidden;
    // Weights and 1 / rms.
    let statistics = move |group: usize| 4 * (group + elements / group);
    let shape = move |group: usize| vec![tokens, hidden / group, group];
    let forward = move |operation, group: usize, delta: bool| {
        let floor = (if delta { 4 } else { 2 }) * elements * bytes + statistics(group);
        Case::new(operation, &shape(group), vec![Kernel::typed("add_rms_norm", storage, floor)], move |b| {
            let addend = if delta { Some(matrix(b, tokens, hidden)?) } else { None };
            let (weight, mut inv_rms) = (b.reals(group)?, b.reals(elements / group)?);
            let (mut x, mut out) = (matrix(b, tokens, hidden)?, matrix(b, tokens, hidden)?);
            b.add_rms_norm(&mut x, addend.as_ref(), &weight, 1e-6, NormKind::Plain, &mut out, &mut inv_rms)
        })
    };
    let backward = move |operation, group: usize, add: bool| {
        let floor = (if add { 4 } else { 3 }) * elements * bytes + statistics(group);
        Case::new(operation, &shape(group), vec![Kernel::typed("rms_norm_backward", storage, floor)], move |b| {
            let (weight, inv_rms) = (b.reals(group)?, b.reals(elements / group)?);
            let mut d_x = matrix(b, tokens, hidden)?;
            let target = if add { Target::Add(&mut d_x) } else { Target::Overwrite(&mut d_x) };
            let (d_out, x) = (matrix(b, tokens, hidden)?, matrix(b, tokens, hidden)?);
            b.rms_norm_backward(&d_out, &x, &weight, NormKind::Plain, &inv_rms, target)
        })
    };
    vec![
        forward("add_rms_norm with delta", hidden, true),
        forward("add_rms_norm", hidden, false),
        forward("add_rms_norm a head", HEAD, false),
        backward("rms_norm_backward", hidden, false),
        backward("rms_norm_backward, added", hidden, true),
        backward("rms_norm_backward a head", HEAD, false),
    ]
}

pub(crate) fn gated_cases(size: Size, storage: Storage) -> Vec<Case> {
    let (tokens, cols) = (size.tokens, size.intermediate);
    let bytes = tokens * cols * storage.bytes();
    let mut all = Vec::new();
    for (activation, name) in [(GatedActivation::Silu, "silu_gate"), (GatedActivation::GeluTanh, "gelu_gate")] {
        let kernel = vec![Kernel::typed(name, storage, 3 * bytes)];
        all.push(Case::new("gated", &[tokens, cols], kernel, move |b| {
            let wide = || matrix(b, tokens, cols);
            b.gated(&wide()?, &wide()?, activation, &mut wide()?)
        }));
        let kernel = vec![Kernel::typed(&format!("{name}_backward"), storage, 5 * bytes)];
        all.push(Case::new("gated_backward", &[tokens, cols], kernel, move |b| {
            let wide = || matrix(b, tokens, cols);
            b.gated_backward(&wide()?, &wide()?, &wide()?, activation, &mut wide()?, &mut wide()?)
        }));
    }
    all
}

/// Vectors of parameters, f32 and i64 whatever the storage.
pub(crate) fn flat_cases(size: Size) -> Vec<Case> {
    const SETTINGS: AdamW = AdamW {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        step: 3,
        gradient_scale: 1.0,
    };
    let len = size.parameters;
    let segments = move || [Segment { range: 0..len, exponent: 20 }];
    let kernel = |name: &str, bytes: usize| vec![Kernel::plain(name, bytes * len)];
    vec![
        Case::new("accumulate_fixed", &[len], kernel("fixed_accumulate", 20), move |b| {
            let (mut sums, mut flags) = (b.integers(len)?, b.integers(1)?);
            b.accumulate_fixed(&b.reals(len)?, &Bucket::whole(&segments(), len), 40, &mut sums, &mut flags)
        }),
        Case::new("fixed_to_gradient", &[len], kernel("fixed_to_gradient", 12), move |b| {
            b.fixed_to_gradient(&b.integers(len)?, &Bucket::whole(&segments(), len), 3.0, &mut b.reals(len)?)
        }),
        Case::new("max_abs", &[len], kernel("fixed_max_abs", 4), move |b| {
            b.max_abs(&b.reals(len)?, &segments()).map(drop)
        }),
        Case::new("squared_norm", &[len], kernel("fixed_squares", 4), move |b| {
            b.squared_norm(&b.reals(len)?).map(drop)
        }),
        Case::new("adamw", &[len], kernel("adamw", 28), move |b| {
            let state = || b.reals(len);
            b.adamw(&mut state()?, &state()?, &mut state()?, &mut state()?, &SETTINGS)
        }),
        Case::new("add_scaled", &[len], kernel("add_scaled", 12), move |b| {
            b.add_scaled(&mut b.reals(len)?, 0.5, &b.reals(len)?, 0)
        }),
        Case::new("narrow", &[len], kernel("narrow_sums", 6), move |b| b.narrow(&b.reals(len)?, &mut b.halves(len)?)),
        Case::new("widen", &[len], kernel("widen_sums", 6), move |b| b.widen(&b.halves(len)?, &mut b.reals(len)?, 0)),
    ]
}
