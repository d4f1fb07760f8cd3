//! Each check, provoked.

#![allow(clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use ballast_softgpu::{Checks, Counters, Fault, FaultKind, Settings};
use support::{device, kernel, run, shape};

const DECLARATIONS: &str = ".shared .align 16 .b8 s[1024]; .reg .b32 %a, %b, %v; .reg .pred %q; .reg .b64 %at, %w;";
/// `%a`: the thread's own word of shared memory; `%b`: that of the thread 32 on (of 64); `%at`: its word of global.
const PLACES: &str = "shl.b32 %b, %tx, 2;\nmov.u32 %a, s;\nadd.u32 %a, %a, %b;\nxor.b32 %b, %a, 128;\n\
                      mad.wide.u32 %at, %tx, 4, %p0;\n";

fn attempt(body: &str, settings: &Settings) -> (Result<Counters, Fault>, u32) {
    let table = device();
    let memory = table.allocate(256).expect("room");
    let text = kernel(1, DECLARATIONS, &format!("{PLACES}{body}"));
    let result = run(&text, &table, &shape(1, 64), &[memory], settings);
    let line = text.lines().position(|line| line.contains("// here")).map_or(0, |at| at as u32 + 1);
    (result, line)
}

fn expect(kind: FaultKind, told: &str, body: &str) {
    for seed in 0..8 {
        let (result, line) = attempt(body, &Settings { seed, ..Settings::default() });
        let fault = result.expect_err(body);
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(line == 0 || fault.line == line, "line {line} expected: {fault}");
        assert!(fault.to_string().contains(told), "{told:?} expected: {fault}");
    }
}

fn passes(body: &str) {
    for seed in 0..8 {
        let (result, _) = attempt(body, &Settings { seed, ..Settings::default() });
        assert!(result.is_ok(), "{}", result.expect_err("faulted"));
    }
}

#[test]
fn global_bounds_and_alignment() {
    passes("st.global.u32 [%at], %tx;");
    expect(
        FaultKind::IllegalAddress,
        "thread (63, 0, 0)",
        "setp.eq.u32 %q, %tx, 63;\n@%q st.global.u32 [%at+4], %tx; // here",
    );
    expect(
        FaultKind::IllegalAddress,
        "thread (0, 0, 0)",
        "setp.eq.u32 %q, %tx, 0;\n@%q ld.global.u32 %v, [%at+-4]; // here",
    );
    expect(FaultKind::IllegalAddress, "0x10", "mov.u64 %w, 16;\nld.global.u32 %v, [%w]; // here");
    expect(FaultKind::Misaligned, "not a multiple of 4", "ld.global.u32 %v, [%at+2]; // here");
    expect(FaultKind::Misaligned, "not a multiple of 8", "ld.global.v2.u32 {%v, %a}, [%p0+4]; // here");
    expect(FaultKind::IllegalAddress, "atomic", "red.global.add.u32 [%p0+256], 1; // here");
}

#[test]
fn bounds_of_shared_and_local_memory_and_parameters() {
    expect(FaultKind::IllegalAddress, "shared", "st.shared.u32 [%a+1020], %tx; // here");
    expect(FaultKind::Misaligned, "shared", "st.shared.u32 [%a+1], %tx; // here");
    expect(FaultKind::IllegalAddress, "parameters", "ld.param.u64 %w, [k_0+8]; // here");
    expect(FaultKind::IllegalAddress, "local", "ld.local.u32 %v, [%w]; // here");
}

#[test]
fn uninitialized_shared_memory() {
    let body = "ld.shared.u32 %v, [%a]; // here";
    expect(FaultKind::Uninitialized, "before anybody wrote", body);
    expect(FaultKind::Uninitialized, "changed before", "atom.shared.add.u32 %v, [%a], 1; // here");
    let unchecked = Settings { checks: Checks::NONE, ..Settings::default() };
    assert!(attempt(body, &unchecked).0.is_ok());
}

#[test]
fn races_between_warps() {
    let exchange = "st.shared.u32 [%a], %tx;\nbar.sync 0;\nld.shared.u32 %v, [%b];\n";
    passes(exchange);
    passes(&format!("{exchange}bar.sync 0;\nst.shared.u32 [%a], 1;"));
    let both = "add.u32 %v, %tx, 1;\nst.shared.u32 [s], %v;";
    expect(FaultKind::Race, "written", both);
    passes("mov.u32 %v, 5;\nst.shared.u32 [s], %v;");
    // Without a second barrier the fast warp overwrites what the slow one is still to read, or has just read.
    let (mut races, mut others) = (0, Vec::new());
    for seed in 0..32 {
        let settings = Settings { seed, ..Settings::default() };
        match attempt(&format!("{exchange}st.shared.u32 [%a], 77;"), &settings).0.map_err(|fault| fault.kind) {
            Err(FaultKind::Race) => races += 1,
            other => others.push(other),
        }
    }
    assert_eq!((races, others.len()), (32, 0), "{others:?}");
    let unchecked = Settings { checks: Checks { races: false, ..Checks::ALL }, ..Settings::default() };
    assert!(attempt(both, &unchecked).0.is_ok());
}

#[test]
fn races_within_a_warp() {
    let neighbour = "st.shared.u32 [%a], %tx;\nxor.b32 %b, %a, 4;\n";
    expect(FaultKind::Race, "no barrier between", &format!("{neighbour}ld.shared.u32 %v, [%b]; // here"));
    passes(&format!("{neighbour}bar.warp.sync -1;\nld.shared.u32 %v, [%b];"));
    passes("mov.u32 %v, 0;\nst.shared.u32 [s], %v;\nbar.sync 0;\natom.shared.add.u32 %v, [s], 1;");
}

#[test]
fn divergent_collectives() {
    let half = "setp.lt.u32 %q, %tx, 16;\n";
    expect(FaultKind::Divergence, "never come", &format!("{half}@%q shfl.sync.bfly.b32 %v, %tx, 1, 31, -1; // here"));
    expect(
        FaultKind::Divergence,
        "never come",
        &format!("{half}@%q bra $x;\nret;\n$x:\nvote.sync.ballot.b32 %v, %q, -1; // here"),
    );
    expect(FaultKind::Divergence, "never come", &format!("{half}@%q bar.sync 0; // here"));
    expect(FaultKind::Divergence, "member mask", "shfl.sync.bfly.b32 %v, %tx, 1, 31, 65535; // here");
    let mma =
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%v,%v,%v,%v}, {%a,%a,%a,%a}, {%b,%b}, {%v,%v,%v,%v};";
    expect(FaultKind::Divergence, "never come", &format!("{half}@%q {mma} // here"));
    let matrix = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%v}, [%a];";
    expect(FaultKind::Divergence, "never come", &format!("{half}@%q {matrix} // here"));
    expect(
        FaultKind::Divergence,
        "takes no part",
        &format!("{half}@!%q bra $x;\nshfl.sync.bfly.b32 %v, %tx, 16, 31, 65535; // here\n$x:"),
    );
    // Lanes that come by different ways meet at the collective.
    passes(&format!(
        "{half}@%q bra $x;\nmov.u32 %v, 1;\nbra $y;\n$x:\nmov.u32 %v, 2;\n$y:\nshfl.sync.bfly.b32 %v, %v, 1, 31, -1;"
    ));
}

#[test]
fn warps_that_wait_for_ever() {
    expect(FaultKind::Deadlock, "wait at a barrier", "setp.lt.u32 %q, %tx, 32;\n@%q bar.sync 1, 64; // here");
    passes("setp.lt.u32 %q, %tx, 32;\n@%q bar.sync 1, 32;");
    passes("setp.lt.u32 %q, %tx, 32;\n@%q ret;\nbar.sync 0;");
}

#[test]
fn asynchronous_copies() {
    let copy = "shl.b32 %a, %tx, 2;\nmov.u32 %b, s;\nadd.u32 %a, %a, %b;\ncp.async.ca.shared.global [%a], [%at], 4;\n";
    let start = format!("st.global.u32 [%at], %tx;\n{copy}");
    let compare = "ld.shared.u32 %v, [%a];\nsetp.ne.u32 %q, %v, %tx;\n@%q trap;";
    passes(&format!("{start}cp.async.commit_group;\ncp.async.wait_group 0;\n{compare}"));
    passes(&format!("{start}cp.async.wait_all;\n{compare}"));
    expect(FaultKind::AsyncPending, "cp.async", &format!("{start}ld.shared.u32 %v, [%a]; // here"));
    expect(
        FaultKind::AsyncPending,
        "cp.async",
        &format!("{start}cp.async.commit_group;\ncp.async.wait_group 1;\nld.shared.u32 %v, [%a]; // here"),
    );
    expect(
        FaultKind::AsyncPending,
        "cp.async",
        &format!("{start}cp.async.wait_group 0;\nst.shared.u32 [%a], %v; // here"),
    );
    // The wait covers the thread's own copies only: others' need a barrier.
    let wait = "cp.async.commit_group;\ncp.async.wait_group 0;\nxor.b32 %a, %a, 128;\n";
    let (races, pending) = (0..32).fold((0, 0), |(races, pending), seed| {
        let body = format!("{start}{wait}ld.shared.u32 %v, [%a];");
        match attempt(&body, &Settings { seed, ..Settings::default() }).0.expect_err("raced").kind {
            FaultKind::Race => (races + 1, pending),
            FaultKind::AsyncPending | FaultKind::Uninitialized => (races, pending + 1),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(races + pending, 32);
    passes(&format!("{start}{wait}bar.sync 0;\nld.shared.u32 %v, [%a];"));
    // Zeros fill what is not read, and an address that is not read may be anything.
    let zeros = copy.replace("[%at], 4;", "[%w], 4, 0;");
    passes(&format!("{zeros}cp.async.wait_all;\nld.shared.u32 %v, [%a];\nsetp.ne.u32 %q, %v, 0;\n@%q trap;"));
    let outside = copy.replace("[%at], 4;", "[%w], 4, 2; // here");
    expect(FaultKind::IllegalAddress, "cp.async", &format!("mov.u64 %w, 64;\n{outside}"));
}

#[test]
fn traps_and_asserts() {
    expect(FaultKind::Trap, "trap", "trap; // here");
    let fault = attempt("trap;", &Settings::default()).0.expect_err("trapped");
    assert_eq!((fault.kind.code(), fault.kind.is_sticky()), (719, true));
    assert_eq!(FaultKind::IllegalAddress.code(), 700);
    assert_eq!(FaultKind::Misaligned.code(), 716);
}
