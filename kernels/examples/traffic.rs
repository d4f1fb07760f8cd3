//! Global memory that each kernel moves on the software device, beside the least it could (`make traffic`): emulated,
//! and exact. One JSON object a line; fails when a kernel moves more than its limit times its floor.
//!
//! Every case runs in a process of its own, whose counters the device writes at its end (`SOFTGPU_COUNTERS`); nothing
//! but the operation launches kernels there. `bytes` counts 32 for each sector of each request, as if there were no
//! cache; `floor` counts inputs once and outputs once, for attention as often as tiles of 64 rows meet them;
//! `conflicts` are passes over the banks of shared memory beyond the fewest.

use ballast_kernels::cuda::{CudaBackend, Storage};
use ballast_kernels::{
    AdamW, AttentionShape, Backend, Direction, GatedActivation, KernelError, NormKind, PackedLayout, Segment, Target,
};
use std::error::Error;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::{env, fs};

const TOKENS: usize = 1024;
const HIDDEN: usize = 2048;
const HEADS: usize = 32;
const HEAD: usize = 64;
const INTERMEDIATE: usize = 4096;
const PARAMETERS: usize = 1 << 20;
/// Most that a kernel limited by memory may move over its floor.
const LIMIT: f64 = 1.15;
/// Most that attention may move over what flash attention with its tiles must.
const FLASH_LIMIT: f64 = 1.15;

type Run = fn(&CudaBackend) -> Result<(), KernelError>;

struct Case {
    operation: &'static str,
    shape: String,
    /// Bytes of a value in storage enter `floor(bytes)`.
    floor: fn(usize) -> usize,
    limit: f64,
    run: Run,
}

fn case(operation: &'static str, shape: &[usize], floor: fn(usize) -> usize, run: Run) -> Case {
    Case { operation, shape: format!("{shape:?}"), floor, limit: LIMIT, run }
}

fn matrix(b: &CudaBackend, cols: usize) -> Result<<CudaBackend as Backend>::Activations, KernelError> {
    b.upload_activations(&vec![0.5; TOKENS * cols], TOKENS, cols)
}

/// Half of the rows, the odd ones.
fn odd_rows(b: &CudaBackend) -> Result<<CudaBackend as Backend>::Indices, KernelError> {
    let rows: Vec<u32> = (0..TOKENS as u32).filter(|row| row % 2 == 1).collect();
    b.upload_indices(&rows)
}

fn segments() -> [Segment; 1] {
    [Segment { range: 0..PARAMETERS, exponent: 20 }]
}

fn cases() -> Vec<Case> {
    let rows = [TOKENS, HIDDEN];
    let mut all = row_cases(&rows);
    all.extend(norm_cases(&rows));
    all.extend(gated_cases(&[TOKENS, INTERMEDIATE]));
    all.extend(flat_cases(&[PARAMETERS]));
    all.extend(attention_cases());
    all
}

fn row_cases(shape: &[usize]) -> Vec<Case> {
    const ELEMENTS: usize = TOKENS * HIDDEN;
    vec![
        case(
            "embedding",
            shape,
            |size| 2 * ELEMENTS * size + 4 * TOKENS,
            |b| {
                let table = b.pack_embedding(&vec![0.5; TOKENS * HIDDEN], TOKENS, HIDDEN)?;
                let ids: Vec<u32> = (0..TOKENS as u32).rev().collect();
                b.embedding(&table, &b.upload_indices(&ids)?, 2.0, &mut matrix(b, HIDDEN)?)
            },
        ),
        case(
            "gather_rows",
            shape,
            |size| ELEMENTS * size + 2 * TOKENS,
            |b| {
                let mut out = b.activations(TOKENS / 2, HIDDEN)?;
                b.gather_rows(&matrix(b, HIDDEN)?, &odd_rows(b)?, &mut out)
            },
        ),
        case(
            "scatter_rows",
            shape,
            |size| ELEMENTS / 2 * 3 * size + 2 * TOKENS,
            |b| {
                let d_out = b.upload_activations(&vec![0.5; ELEMENTS / 2], TOKENS / 2, HIDDEN)?;
                b.scatter_rows(&d_out, &odd_rows(b)?, &mut matrix(b, HIDDEN)?)
            },
        ),
        case("add", shape, |size| 3 * ELEMENTS * size, |b| b.add(&mut matrix(b, HIDDEN)?, &matrix(b, HIDDEN)?)),
        case(
            "rotary",
            &[TOKENS, HEADS, HEAD],
            |size| 2 * ELEMENTS * size + TOKENS * (4 * HEAD + 4),
            |b| rotate(b, HEADS),
        ),
        case("rotary", &[TOKENS, 4, HEAD], |size| TOKENS * (8 * HEAD * size + 4 * HEAD + 4), |b| rotate(b, 4)),
    ]
}

fn rotate(b: &CudaBackend, heads: usize) -> Result<(), KernelError> {
    let angles = vec![0.5; TOKENS * HEAD / 2];
    let tables = b.upload_rotary(&angles, &angles, HEAD / 2)?;
    let packing = b.upload_packing(&PackedLayout::new(&[TOKENS as u32], &[0]))?;
    b.rotary(&mut matrix(b, heads * HEAD)?, heads, &tables, &packing, Direction::Forward)
}

fn norm(b: &CudaBackend, group: usize, delta: bool) -> Result<(), KernelError> {
    let addend = if delta { Some(matrix(b, HIDDEN)?) } else { None };
    let (weight, mut inv_rms) = (b.reals(group)?, b.reals(TOKENS * HIDDEN / group)?);
    let (mut x, mut out) = (matrix(b, HIDDEN)?, matrix(b, HIDDEN)?);
    b.add_rms_norm(&mut x, addend.as_ref(), &weight, 1e-6, NormKind::Plain, &mut out, &mut inv_rms)
}

fn norm_backward(b: &CudaBackend, group: usize, add: bool) -> Result<(), KernelError> {
    let (weight, inv_rms) = (b.reals(group)?, b.reals(TOKENS * HIDDEN / group)?);
    let mut d_x = matrix(b, HIDDEN)?;
    let target = if add { Target::Add(&mut d_x) } else { Target::Overwrite(&mut d_x) };
    b.rms_norm_backward(&matrix(b, HIDDEN)?, &matrix(b, HIDDEN)?, &weight, NormKind::Plain, &inv_rms, target)
}

fn norm_cases(shape: &[usize]) -> Vec<Case> {
    const ELEMENTS: usize = TOKENS * HIDDEN;
    /// Weights and 1 / rms.
    const ROWS: usize = 4 * (HIDDEN + TOKENS);
    const PER_HEAD: usize = 4 * (HEAD + TOKENS * HEADS);
    let heads = [TOKENS, HEADS, HEAD];
    vec![
        case("add_rms_norm with delta", shape, |size| 4 * ELEMENTS * size + ROWS, |b| norm(b, HIDDEN, true)),
        case("add_rms_norm", shape, |size| 2 * ELEMENTS * size + ROWS, |b| norm(b, HIDDEN, false)),
        case("add_rms_norm a head", &heads, |size| 2 * ELEMENTS * size + PER_HEAD, |b| norm(b, HEAD, false)),
        case("rms_norm_backward", shape, |size| 3 * ELEMENTS * size + ROWS, |b| norm_backward(b, HIDDEN, false)),
        case("rms_norm_backward, added", shape, |size| 4 * ELEMENTS * size + ROWS, |b| norm_backward(b, HIDDEN, true)),
        case(
            "rms_norm_backward a head",
            &heads,
            |size| 3 * ELEMENTS * size + PER_HEAD,
            |b| norm_backward(b, HEAD, false),
        ),
    ]
}

fn gate(b: &CudaBackend, activation: GatedActivation) -> Result<(), KernelError> {
    b.gated(&matrix(b, INTERMEDIATE)?, &matrix(b, INTERMEDIATE)?, activation, &mut matrix(b, INTERMEDIATE)?)
}

fn gate_backward(b: &CudaBackend, activation: GatedActivation) -> Result<(), KernelError> {
    let wide = || matrix(b, INTERMEDIATE);
    b.gated_backward(&wide()?, &wide()?, &wide()?, activation, &mut wide()?, &mut wide()?)
}

fn gated_cases(shape: &[usize]) -> Vec<Case> {
    const ELEMENTS: usize = TOKENS * INTERMEDIATE;
    vec![
        case("gated silu", shape, |size| 3 * ELEMENTS * size, |b| gate(b, GatedActivation::Silu)),
        case("gated gelu", shape, |size| 3 * ELEMENTS * size, |b| gate(b, GatedActivation::GeluTanh)),
        case("gated_backward silu", shape, |size| 5 * ELEMENTS * size, |b| gate_backward(b, GatedActivation::Silu)),
        case("gated_backward gelu", shape, |size| 5 * ELEMENTS * size, |b| gate_backward(b, GatedActivation::GeluTanh)),
    ]
}

/// Vectors of parameters, f32 and i64 whatever the storage.
fn flat_cases(shape: &[usize]) -> Vec<Case> {
    const SETTINGS: AdamW = AdamW {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        step: 3,
        gradient_scale: 1.0,
    };
    vec![
        case(
            "accumulate_fixed",
            shape,
            |_| 20 * PARAMETERS,
            |b| {
                let (mut sums, mut flags) = (b.integers(PARAMETERS)?, b.integers(1)?);
                b.accumulate_fixed(&b.reals(PARAMETERS)?, &segments(), 40, &mut sums, &mut flags)
            },
        ),
        case(
            "fixed_to_gradient",
            shape,
            |_| 12 * PARAMETERS,
            |b| b.fixed_to_gradient(&b.integers(PARAMETERS)?, &segments(), 3.0, &mut b.reals(PARAMETERS)?),
        ),
        case("max_abs", shape, |_| 4 * PARAMETERS, |b| b.max_abs(&b.reals(PARAMETERS)?, &segments()).map(drop)),
        case("squared_norm", shape, |_| 4 * PARAMETERS, |b| b.squared_norm(&b.reals(PARAMETERS)?).map(drop)),
        case(
            "adamw",
            shape,
            |_| 28 * PARAMETERS,
            |b| {
                let state = || b.reals(PARAMETERS);
                b.adamw(&mut state()?, &state()?, &mut state()?, &mut state()?, &SETTINGS)
            },
        ),
    ]
}

/// One sequence of the tensor-core kernels, grouped heads.
const ATTENTION: AttentionShape = AttentionShape { heads: 8, kv_heads: 2, head_dim: 64, scale: 0.125, window: None };
const LENGTH: usize = 512;

/// Bytes that flash attention with tiles of 64 rows must move: queries and what belongs to them once, keys and values
/// once a tile of queries and head that sees them; backward, also queries once a tile of keys that they see.
fn flash_floor(size: usize, backward: bool) -> usize {
    const TILE: usize = 64;
    let (heads, kv_heads, row) = (ATTENTION.heads, ATTENTION.kv_heads, ATTENTION.head_dim * size);
    let tiles = LENGTH / TILE;
    let met = heads * TILE * tiles * (tiles + 1) / 2;
    let (queries, keys) = (heads * LENGTH, kv_heads * LENGTH);
    if !backward {
        return queries * (2 * row + 4) + met * 2 * row;
    }
    let delta = queries * (2 * row + 4);
    let of_queries = queries * (3 * row + 8) + met * 2 * row;
    let of_keys = keys * 4 * row + met * (2 * row + 8);
    delta + of_queries + of_keys
}

fn attend(b: &CudaBackend, backward: bool) -> Result<(), KernelError> {
    let new = |heads: usize| {
        let cols = heads * ATTENTION.head_dim;
        b.upload_activations(&vec![0.5; LENGTH * cols], LENGTH, cols)
    };
    let (queries, keys) = (|| new(ATTENTION.heads), || new(ATTENTION.kv_heads));
    let packing = b.upload_packing(&PackedLayout::new(&[LENGTH as u32], &[0]))?;
    let mut saved = b.reals(LENGTH * ATTENTION.heads)?;
    let (q, k, v, mut out) = (queries()?, keys()?, keys()?, queries()?);
    if !backward {
        return b.attention(&q, &k, &v, &packing, &ATTENTION, &mut out, &mut saved);
    }
    let (d_out, mut d_q, mut d_k, mut d_v) = (queries()?, queries()?, keys()?, keys()?);
    b.attention_backward(&d_out, &q, &k, &v, &out, &saved, &packing, &ATTENTION, &mut d_q, &mut d_k, &mut d_v)
}

/// In bf16 alone: the f32 kernels are there for parity, not for speed.
fn attention_cases() -> [Case; 2] {
    let shape = [LENGTH, ATTENTION.heads, ATTENTION.kv_heads, ATTENTION.head_dim];
    let flash = |operation, floor, run| Case { limit: FLASH_LIMIT, ..case(operation, &shape, floor, run) };
    [
        flash("attention", |size| flash_floor(size, false), |b| attend(b, false)),
        flash("attention_backward", |size| flash_floor(size, true), |b| attend(b, true)),
    ]
}

/// A number of a JSON object that the device wrote.
fn field(line: &str, name: &str) -> Result<u64, String> {
    let (_, rest) = line.split_once(&format!("\"{name}\":")).ok_or_else(|| format!("no {name} in {line}"))?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().map_err(|error| format!("{name} in {line}: {error}"))
}

/// Runs a case in a process of its own and prints what it moved; the ratio to the floor.
fn measure(case: &Case, number: usize, storage: Storage, counters: &Path) -> Result<f64, Box<dyn Error>> {
    let mut child = Command::new(env::current_exe()?);
    child.args([storage.suffix(), &number.to_string()]).env("SOFTGPU_COUNTERS", counters);
    if !child.status()?.success() {
        return Err(format!("{} failed", case.operation).into());
    }
    let lines = fs::read_to_string(counters)
        .map_err(|_| "no counters were written: this needs the software device on LD_LIBRARY_PATH (make traffic)")?;
    fs::remove_file(counters)?;
    let (mut bytes, mut conflicts) = (0, 0);
    for line in lines.lines() {
        bytes += field(line, "global_bytes")?;
        conflicts += field(line, "shared_conflicts")?;
    }
    let floor = (case.floor)(storage.bytes());
    let ratio = bytes as f64 / floor as f64;
    println!(
        "{{\"kernel\":\"{} {}\",\"shape\":{},\"bytes\":{bytes},\"floor\":{floor},\"ratio\":{ratio:.3},\
         \"conflicts\":{conflicts},\"result\":\"emulated\"}}",
        case.operation,
        storage.suffix(),
        case.shape
    );
    Ok(ratio)
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let cases = cases();
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [storage, number] = &arguments[..] {
        let storage = if storage == Storage::F32.suffix() { Storage::F32 } else { Storage::Bf16 };
        let backend = CudaBackend::new(0, storage)?;
        (cases[number.parse::<usize>()?].run)(&backend)?;
        backend.synchronize()?;
        return Ok(ExitCode::SUCCESS);
    }
    let counters = env::temp_dir().join(format!("ballast-traffic-{}.jsonl", std::process::id()));
    let mut wasteful = 0;
    for storage in [Storage::Bf16, Storage::F32] {
        for (number, case) in cases.iter().enumerate() {
            if storage == Storage::F32 && case.operation.starts_with("attention") {
                continue;
            }
            let ratio = measure(case, number, storage, &counters)?;
            // Written so that a NaN counts; a kernel that moves less than its inputs did not do its work.
            wasteful += usize::from(!(0.99..=case.limit).contains(&ratio));
        }
    }
    if wasteful > 0 {
        eprintln!("traffic: {wasteful} cases are not within their limit");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
