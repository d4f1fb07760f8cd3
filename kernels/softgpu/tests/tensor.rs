//! Tensor cores against a plain matrix product, `ldmatrix`, counters, perturbation.

#![allow(clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use ballast_softgpu::{Counters, Settings};
use support::{device, download, kernel, run, shape, upload};

const MMA: &str = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";

fn bf16(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

/// Small integers, exact in bf16, distinct enough to tell places apart.
fn matrix(rows: usize, columns: usize, seed: usize) -> Vec<f32> {
    (0..rows * columns).map(|at| ((at * 37 + seed * 11) % 61) as f32 - 30.0).collect()
}

fn product(a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    let term = |at: usize, k: usize| a[at / 8 * 16 + k] * b[k * 8 + at % 8];
    (0..128).map(|at| c[at] + (0..16).map(|k| term(at, k)).sum::<f32>()).collect()
}

/// Fills shared memory with A (16 x 16, row-major) and B (16 x 8), loads fragments with `ldmatrix`, multiplies, and
/// stores fragments as the PTX ISA lays them out.
fn with_ldmatrix(settings: &Settings) -> (Vec<f32>, Vec<f32>, Counters) {
    let (a, b, c) = (matrix(16, 16, 1), matrix(16, 8, 2), matrix(16, 8, 3));
    let table = device();
    let both: Vec<u16> = a.iter().chain(&b).map(|&v| bf16(v)).collect();
    let (input, sums) = (upload(&table, &both), upload(&table, &c));
    let output = table.allocate(512).expect("room");
    let declarations = ".shared .align 128 .b8 s[768];\n.reg .b32 %i, %at, %row, %column;\n.reg .b64 %from, %w;\n\
                        .reg .b32 %a<4>, %b<2>, %c<4>;\n.reg .pred %q;";
    let body = format!(
        "mul.lo.u32 %i, %tx, 16;\nmov.u32 %at, s;\nadd.u32 %at, %at, %i;\nmad.wide.u32 %from, %tx, 16, %p0;\n\
         cp.async.cg.shared.global [%at], [%from], 16;\nsetp.lt.u32 %q, %tx, 16;\n\
         @%q cp.async.cg.shared.global [%at+512], [%from+512], 16;\ncp.async.commit_group;\n\
         cp.async.wait_group 0;\nbar.sync 0;\n\
         and.b32 %row, %tx, 15;\nshr.u32 %column, %tx, 4;\nshl.b32 %row, %row, 5;\nshl.b32 %column, %column, 4;\n\
         mov.u32 %at, s;\nadd.u32 %at, %at, %row;\nadd.u32 %at, %at, %column;\n\
         ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%a0, %a1, %a2, %a3}}, [%at];\n\
         and.b32 %row, %tx, 15;\nshl.b32 %row, %row, 4;\nmov.u32 %at, s;\nadd.u32 %at, %at, %row;\n\
         ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {{%b0, %b1}}, [%at+512];\n\
         shr.u32 %row, %tx, 2;\nand.b32 %column, %tx, 3;\nshl.b32 %column, %column, 1;\n\
         mad.lo.u32 %i, %row, 8, %column;\nmad.wide.u32 %w, %i, 4, %p1;\n\
         ld.global.v2.u32 {{%c0, %c1}}, [%w];\nld.global.v2.u32 {{%c2, %c3}}, [%w+256];\n\
         {MMA} {{%c0, %c1, %c2, %c3}}, {{%a0, %a1, %a2, %a3}}, {{%b0, %b1}}, {{%c0, %c1, %c2, %c3}};\n\
         mad.wide.u32 %w, %i, 4, %p2;\nst.global.v2.u32 [%w], {{%c0, %c1}};\nst.global.v2.u32 [%w+256], {{%c2, %c3}};"
    );
    let text = kernel(3, declarations, &body);
    let counters =
        run(&text, &table, &shape(1, 32), &[input, sums, output], settings).unwrap_or_else(|f| panic!("{f}"));
    (download(&table, output, 128), product(&a, &b, &c), counters)
}

#[test]
fn a_product_through_shared_memory() {
    let (found, expected, counters) = with_ldmatrix(&Settings::default());
    assert_eq!(found, expected);
    assert_eq!(counters.mma, 1);
    // Rows of A are 32 bytes apart: the 8 rows of a matrix fall on each bank twice, 4 matrices, one extra pass each.
    // Rows of B lie next to each other: none.
    assert_eq!(counters.shared_conflicts, 4);
    // A and B: 768 bytes; C: 512 bytes, read and written once.
    assert_eq!(counters.global_load_sectors, 24 + 16);
    assert_eq!(counters.global_store_sectors, 16);
    assert_eq!(counters.global_bytes(), 32 * 56);
    assert_eq!(counters.global_requested_bytes, 768 + 512 + 512);
}

#[test]
fn sums_of_small_integers_do_not_depend_on_their_order() {
    for seed in 0..8 {
        let (found, expected, _) = with_ldmatrix(&Settings { perturb: true, seed, ..Settings::default() });
        assert_eq!(found, expected);
    }
}

/// Fragments written element by element: A of `registers` words, B of half as many.
fn fragments(shape_and_types: &str, tf32: bool, k: usize) {
    let (a, b) = (matrix(16, k, 4), matrix(k, 8, 5));
    let per_word = if tf32 { 1 } else { 2 };
    let (words_a, words_b) = (16 * k / 32 / per_word, 8 * k / 32 / per_word);
    let word = |values: &[f32]| match values {
        [one] => one.to_bits(),
        [low, high] => u32::from(bf16(*high)) << 16 | u32::from(bf16(*low)),
        _ => unreachable!(),
    };
    let mut input = Vec::new();
    for lane in 0..32 {
        let (group, within) = (lane / 4, lane % 4);
        for register in 0..words_a {
            let row = group + 8 * (register % 2);
            let column = register / 2 * 4 * per_word + within * per_word;
            input.push(word(&a[row * k + column..][..per_word]));
        }
        for register in 0..words_b {
            let row = register * 4 * per_word + within * per_word;
            let column: Vec<f32> = (0..per_word).map(|at| b[(row + at) * 8 + group]).collect();
            input.push(word(&column));
        }
    }
    let words = words_a + words_b;
    let table = device();
    let (from, to) = (upload(&table, &input), table.allocate(512).expect("room"));
    let mut body = format!("mad.wide.u32 %at, %tx, {}, %p0;\n", 4 * words);
    for at in 0..words {
        body += &format!("ld.global.u32 %f{at}, [%at+{}];\n", 4 * at);
    }
    let list = |range: std::ops::Range<usize>| range.map(|at| format!("%f{at}")).collect::<Vec<_>>().join(", ");
    body += &format!(
        "mov.u32 %z, 0;\nmma.sync.aligned.{shape_and_types} {{%d0, %d1, %d2, %d3}}, {{{}}}, {{{}}}, {{%z, %z, %z, %z}};\n\
         mad.wide.u32 %at, %tx, 16, %p1;\nst.global.v4.u32 [%at], {{%d0, %d1, %d2, %d3}};",
        list(0..words_a),
        list(words_a..words)
    );
    let text = kernel(2, ".reg .b32 %f<6>, %d<4>, %z; .reg .b64 %at;", &body);
    run(&text, &table, &shape(1, 32), &[from, to], &Settings::default()).unwrap_or_else(|f| panic!("{f}"));
    let found = download::<f32>(&table, to, 128);
    for (at, &value) in found.iter().enumerate() {
        let (lane, part) = (at / 4, at % 4);
        let (row, column) = (lane / 4 + part / 2 * 8, lane % 4 * 2 + part % 2);
        let expected: f32 = (0..k).map(|at| a[row * k + at] * b[at * 8 + column]).sum();
        assert_eq!(value, expected, "{shape_and_types} row {row} column {column}");
    }
}

#[test]
fn all_shapes() {
    fragments("m16n8k16.row.col.f32.bf16.bf16.f32", false, 16);
    fragments("m16n8k8.row.col.f32.bf16.bf16.f32", false, 8);
    fragments("m16n8k8.row.col.f32.tf32.tf32.f32", true, 8);
    fragments("m16n8k4.row.col.f32.tf32.tf32.f32", true, 4);
}

#[test]
fn approximations_move_within_their_error() {
    let body =
        "mad.wide.u32 %at, %tx, 4, %p0;\nld.global.f32 %v, [%at];\nex2.approx.f32 %v, %v;\nst.global.f32 [%at], %v;";
    let text = kernel(1, ".reg .b64 %at; .reg .b32 %v;", body);
    let inputs: Vec<f32> = (0..32).map(|lane| lane as f32 * 0.37 - 5.0).collect();
    let mut moved = 0;
    for seed in 0..16 {
        let table = device();
        let memory = upload(&table, &inputs);
        run(&text, &table, &shape(1, 32), &[memory], &Settings { perturb: true, seed, ..Settings::default() })
            .expect("runs");
        for (x, found) in inputs.iter().zip(download::<f32>(&table, memory, 32)) {
            let exact = f64::from(*x).exp2();
            assert!((f64::from(found) - exact).abs() <= exact * 2.0_f64.powi(-22), "2^{x} = {found}");
            moved += usize::from(found != exact as f32);
        }
    }
    assert!(moved > 100, "only {moved} of 512 results moved");
}

#[test]
fn bank_conflicts_and_sectors() {
    let counted = |stride: u32, bytes: u32| {
        let registers = ["%v", "{%v, %v}", "", "{%v, %v, %v, %v}"][bytes as usize / 4 - 1];
        let vector = ["", ".v2", "", ".v4"][bytes as usize / 4 - 1];
        let body = format!(
            "mov.u32 %v, 1;\nmul.lo.u32 %a, %tx, {stride};\nmov.u32 %b, s;\nadd.u32 %a, %a, %b;\n\
             st.shared{vector}.u32 [%a], {registers};\nmad.wide.u32 %at, %tx, {stride}, %p0;\n\
             st.global{vector}.u32 [%at], {registers};"
        );
        let declarations = ".shared .align 16 .b8 s[8192]; .reg .b32 %a, %b, %v; .reg .b64 %at;";
        let table = device();
        let memory = table.allocate(8192).expect("room");
        let text = kernel(1, declarations, &body);
        let counters = run(&text, &table, &shape(1, 32), &[memory], &Settings::default()).expect("runs");
        (counters.shared_conflicts, counters.global_store_sectors)
    };
    assert_eq!(counted(4, 4), (0, 4));
    assert_eq!(counted(8, 4), (1, 8));
    assert_eq!(counted(128, 4), (31, 32));
    assert_eq!(counted(132, 4), (0, 32));
    assert_eq!(counted(0, 4), (0, 1));
    assert_eq!(counted(8, 8), (0, 8));
    assert_eq!(counted(16, 16), (0, 16));
    assert_eq!(counted(32, 16), (4, 32));
}
