//! The same operations by llm.c (github.com/karpathy/llm.c), from the PTX that `compile.py` makes of a checkout of it.
//!
//! Launches are those of llm.c's own launchers, on a device of 108 multiprocessors as the software device says it is.
//! Its products are cuBLASLt's, as ours, and left out on both sides; attention there is three kernels around two of them.

mod launch;

use crate::attention::Attention;
use crate::case::{Case, Size};
use crate::{memory, products};
use ballast_kernels::cuda::Storage;
pub(crate) use launch::run;
use launch::{Launch, Value};

/// An operation by both.
pub(crate) struct Comparison {
    /// Elements of its result, by which counts are divided.
    pub(crate) elements: usize,
    pub(crate) ours: Case,
    pub(crate) theirs: Vec<Launch>,
}

const BF16: usize = 2;
const F32: usize = 4;
/// Elements of a 16-byte access.
const PACK: usize = 8;
const MULTIPROCESSORS: usize = 108;

/// Operations that both have, in bf16.
pub(crate) fn comparisons() -> Vec<Comparison> {
    let mut all = norms();
    all.extend(elementwise());
    all.extend(parameters());
    all.push(classifier());
    all.extend(attention());
    all
}

/// A case of ours by its operation and the name of its first kernel.
///
/// # Panics
/// There is none: a mistake in this program.
fn case(cases: Vec<Case>, operation: &str, kernel: &str) -> Case {
    let found = cases.into_iter().find(|case| case.operation == operation && case.kernels[0].name.starts_with(kernel));
    found.expect("a case of this program")
}

/// LayerNorm there, with mean and bias, RMSNorm here. Backward, llm.c also makes the gradients of weight and bias, which
/// are frozen here.
fn norms() -> Vec<Comparison> {
    let size = Size { tokens: 2048, hidden: 1024, ..Size::FULL };
    let (rows, cols) = (size.tokens, size.hidden);
    let (elements, matrix, row) = (rows * cols, Value::zeros(rows * cols * BF16), Value::zeros(cols * BF16));
    let (statistics, counts) = (Value::zeros(rows * F32), [Value::I32(rows as i32), Value::I32(cols as i32)]);
    let forward = |kernel, matrices: &[Value]| {
        let shared = (2 + 8) * cols * BF16;
        Launch::new(kernel, [rows.div_ceil(8), 1], [32, 8]).shared(shared).args(matrices).args(&counts)
    };
    let residual = [matrix, matrix, statistics, statistics, matrix, matrix, row, row];
    let plain = [matrix, statistics, statistics, matrix, row, row];
    let blocks = 2 * MULTIPROCESSORS;
    let scratch = Value::zeros((blocks * 2 * cols + 32) * F32);
    let backward = Launch::new("layernorm_backward_kernel10", [blocks, 1], [512, 1])
        .shared((2 * cols + 2 * (512 - 32) * 4) * F32)
        .args(&[matrix, row, row, scratch, matrix, matrix, row, statistics, statistics])
        .args(&[Value::I32(1), Value::I32(rows as i32), Value::I32(cols as i32)]);
    let ours = |operation| case(memory::norm_cases(size, Storage::Bf16), operation, "");
    vec![
        Comparison {
            elements,
            ours: ours("add_rms_norm with delta"),
            theirs: vec![forward("fused_residual_forward_kernel5", &residual)],
        },
        Comparison { elements, ours: ours("add_rms_norm"), theirs: vec![forward("layernorm_forward_kernel6", &plain)] },
        Comparison { elements, ours: ours("rms_norm_backward, added"), theirs: vec![backward] },
    ]
}

/// GELU is gated here: one more operand and product. The encoder there adds positions.
fn elementwise() -> Vec<Comparison> {
    let size = Size::FULL;
    let launch = |kernel, elements: usize, threads: usize, operands: usize| {
        let operand = Value::zeros(elements * BF16);
        Launch::new(kernel, [elements / (threads * PACK), 1], [threads, 1]).args(&vec![operand; operands])
    };
    let (rows, wide) = (size.tokens * size.hidden, size.tokens * size.intermediate);
    let (table, ids) = (Value::zeros(rows * BF16), Value::zeros(size.tokens * F32));
    let encoder = Launch::new("encoder_forward_kernel3", [rows / (256 * PACK), 1], [256, 1])
        .args(&[table, ids, table, table])
        .args(&[Value::I32(1), Value::I32(size.tokens as i32), Value::I32(size.hidden as i32)]);
    let of_rows = |operation| case(memory::row_cases(size, Storage::Bf16), operation, "");
    let of_gates = |operation| case(memory::gated_cases(size, Storage::Bf16), operation, "gelu");
    vec![
        Comparison { elements: rows, ours: of_rows("embedding"), theirs: vec![encoder] },
        Comparison {
            elements: rows,
            ours: of_rows("add"),
            theirs: vec![launch("residual_forward_kernel", rows, 256, 3)],
        },
        Comparison {
            elements: wide,
            ours: of_gates("gated"),
            theirs: vec![launch("gelu_forward_kernel2", wide, 512, 2)],
        },
        Comparison {
            elements: wide,
            ours: of_gates("gated_backward"),
            theirs: vec![launch("gelu_backward_inplace_kernel", wide, 128, 2)],
        },
    ]
}

/// Both in f32; arithmetic is f32 there, f64 here.
fn parameters() -> Vec<Comparison> {
    let len = Size::FULL.parameters;
    let vector = Value::zeros(len * F32);
    let settings = [1e-4, 0.9, 0.999, 0.271, 0.003, 1e-8, 0.01, 1.0].map(Value::F32);
    let adamw = Launch::new("adamw_kernel3", [len.div_ceil(512), 1], [512, 1])
        .args(&[vector, Value::Null, vector, vector, vector, Value::I64(len as i64)])
        .args(&[Value::I64(0), Value::I64(0), Value::I64(0)])
        .args(&settings)
        .args(&[Value::I32(1)]);
    let blocks = 2048 * MULTIPROCESSORS / 512;
    let sums = Value::zeros(blocks * F32);
    let squares = Launch::new("global_norm_squared_kernel", [blocks, 1], [512, 1]).args(&[
        sums,
        vector,
        Value::I64(len as i64),
        Value::I64(0),
    ]);
    let total = Launch::new("global_sum_single_block_kernel", [1, 1], [1024, 1]).args(&[
        Value::zeros(F32),
        sums,
        Value::I64(blocks as i64),
    ]);
    let ours = |operation| case(memory::flat_cases(Size::FULL), operation, "");
    vec![
        Comparison { elements: len, ours: ours("adamw"), theirs: vec![adamw] },
        Comparison { elements: len, ours: ours("squared_norm"), theirs: vec![squares, total] },
    ]
}

/// Logits are bf16 there and f32 here; both write a gradient in bf16.
fn classifier() -> Comparison {
    let vocab = Size::FULL.vocabularies[0];
    let (rows, vocab_arg) = (products::ROWS, Value::I32(vocab as i32));
    let kernel = Launch::new("fused_classifier_kernel5", [rows, 1], [1024, 1])
        .args(&[Value::zeros(rows * vocab * BF16), Value::zeros(rows * F32), Value::Null, Value::F32(1.0)])
        .args(&[Value::zeros(rows * F32), Value::I32(1), Value::I32(rows as i32), vocab_arg, vocab_arg])
        .args(&[Value::I32(0)]);
    let ours = case(products::head_cases(Size::FULL, Storage::Bf16), "linear_cross_entropy", "cross_entropy");
    Comparison { elements: rows * vocab, ours, theirs: vec![kernel] }
}

/// As many key heads as heads, which is all that llm.c has.
fn attention() -> [Comparison; 2] {
    const LENGTH: usize = 512;
    const HEADS: usize = 8;
    const HEAD: usize = 64;
    let elements = LENGTH * HEADS * HEAD;
    let (rows, scores) = (Value::zeros(elements * BF16), Value::zeros(HEADS * LENGTH * LENGTH * BF16));
    let packed = Value::zeros(3 * elements * BF16);
    let counts = [1, LENGTH, HEADS, HEAD].map(|count| Value::I32(count as i32));
    let permute =
        |kernel, operands: &[Value]| Launch::new(kernel, [elements / 256, 1], [256, 1]).args(operands).args(&counts);
    let softmax = Launch::new("softmax_forward_kernel5", [HEADS * LENGTH * 32 / 256, 1], [256, 1]).args(&[
        scores,
        Value::F32(0.125),
        scores,
        Value::I32(HEADS as i32),
        Value::I32(LENGTH as i32),
    ]);
    let softmax_backward = Launch::new("softmax_autoregressive_backward_inplace_kernel", [LENGTH / 4, HEADS], [256, 1])
        .args(&[scores, scores, Value::I32(1), Value::I32(LENGTH as i32), Value::I32((HEADS * HEAD) as i32)])
        .args(&[Value::F32(0.125)]);
    let shape = Attention::tensor(HEAD, "64", LENGTH, 64).with_kv_heads(HEADS);
    let [forward, backward, _] = shape.cases();
    [
        Comparison {
            elements,
            ours: forward,
            theirs: vec![
                permute("permute_kernel", &[rows, rows, rows, packed]),
                softmax,
                permute("unpermute_kernel", &[rows, rows]),
            ],
        },
        Comparison {
            elements,
            ours: backward,
            theirs: vec![
                permute("unpermute_kernel_backward", &[rows, rows]),
                softmax_backward,
                permute("permute_kernel_backward", &[packed, rows, rows, rows]),
            ],
        },
    ]
}
