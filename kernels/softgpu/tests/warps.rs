//! Divergence, collectives, barriers, atomics, local memory, calls.

#![allow(clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use ballast_softgpu::{FaultKind, LaunchConfig, Module, Settings};
use support::{HEADER, device, download, kernel, run, shape, upload};

/// Runs `body` in one warp; each lane stores `%d` in its place.
fn warp(declarations: &str, body: &str) -> Vec<u32> {
    let table = device();
    let output = table.allocate(128).expect("room");
    let declarations = format!(".reg .b32 %d;\n.reg .b64 %at;\n{declarations}");
    let body = format!("{body}\nmad.wide.u32 %at, %tx, 4, %p0;\nst.global.u32 [%at], %d;");
    let text = kernel(1, &declarations, &body);
    run(&text, &table, &shape(1, 32), &[output], &Settings::default()).unwrap_or_else(|f| panic!("{f}\n{text}"));
    download(&table, output, 32)
}

fn lanes(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}

#[test]
fn lanes_diverge_and_meet_again() {
    let text = "setp.lt.u32 %q, %tx, 10;\n@%q bra $low;\nadd.u32 %d, %tx, 100;\nbra $end;\n$low:\nadd.u32 %d, %tx, 200;\n\
                $end:\nactivemask.b32 %m;\nsetp.ne.u32 %q, %m, -1;\n@%q mov.u32 %d, 0;";
    let expected = lanes(|lane| if lane < 10 { lane + 200 } else { lane + 100 });
    assert_eq!(warp(".reg .pred %q; .reg .b32 %m;", text), expected);
}

#[test]
fn loops_of_different_length() {
    let text = "mov.u32 %d, 0;\nmov.u32 %i, 0;\n$loop:\nsetp.ge.u32 %q, %i, %tx;\n@%q bra $done;\nadd.u32 %d, %d, %i;\n\
                add.u32 %i, %i, 1;\nbra.uni $loop;\n$done:\nactivemask.b32 %m;\nsetp.ne.u32 %q, %m, -1;\n@%q trap;";
    assert_eq!(warp(".reg .pred %q; .reg .b32 %m, %i;", text), lanes(|n| n * n.saturating_sub(1) / 2));
}

#[test]
fn branch_tables() {
    let text = "and.b32 %i, %tx, 3;\n$table: .branchtargets $a, $b, $a, $c;\nbrx.idx %i, $table;\n\
                $a:\nmov.u32 %d, 1;\nbra $end;\n$b:\nmov.u32 %d, 2;\nbra $end;\n$c:\nmov.u32 %d, 3;\n$end:";
    assert_eq!(warp(".reg .b32 %i;", text), lanes(|lane| [1, 2, 1, 3][lane as usize % 4]));
}

#[test]
fn shuffles() {
    let shuffled = |mode: &str, by: u32, c: u32| {
        warp(".reg .pred %q;", &format!("shfl.sync.{mode}.b32 %d|%q, %tx, {by}, {c}, -1;\n@!%q add.u32 %d, %d, 1000;"))
    };
    assert_eq!(shuffled("bfly", 3, 31), lanes(|lane| lane ^ 3));
    assert_eq!(shuffled("down", 4, 31), lanes(|lane| if lane < 28 { lane + 4 } else { lane + 1000 }));
    assert_eq!(shuffled("up", 4, 0), lanes(|lane| if lane >= 4 { lane - 4 } else { lane + 1000 }));
    assert_eq!(shuffled("idx", 5, 31), lanes(|_| 5));
    // Segments of 8 lanes.
    assert_eq!(shuffled("idx", 5, 0x181F), lanes(|lane| lane / 8 * 8 + 5));
    let down = lanes(|lane| if lane % 8 < 6 { lane + 2 } else { lane + 1000 });
    assert_eq!(shuffled("down", 2, 0x181F), down);
}

#[test]
fn votes_matches_and_reductions() {
    let odd = ".reg .pred %q; .reg .b32 %i;";
    let set = "and.b32 %i, %tx, 1;\nsetp.eq.u32 %q, %i, 1;\n";
    let ballot = format!("{set}vote.sync.ballot.b32 %d, %q, -1;");
    assert_eq!(warp(odd, &ballot), lanes(|_| 0xAAAA_AAAA));
    assert_eq!(warp(odd, &format!("{set}vote.sync.any.pred %q, %q, -1;\nselp.u32 %d, 1, 0, %q;")), lanes(|_| 1));
    assert_eq!(warp(odd, &format!("{set}vote.sync.all.pred %q, !%q, -1;\nselp.u32 %d, 1, 0, %q;")), lanes(|_| 0));
    assert_eq!(warp(odd, &format!("{set}match.any.sync.b32 %d, %i, -1;")), lanes(|l| 0x5555_5555 << (l % 2)));
    assert_eq!(warp(odd, &format!("{set}match.all.sync.b32 %d|%q, 7, -1;")), lanes(|_| u32::MAX));
    assert_eq!(warp(odd, "redux.sync.add.u32 %d, %tx, -1;"), lanes(|_| 496));
    assert_eq!(warp(odd, "sub.s32 %i, %tx, 9;\nredux.sync.min.s32 %d, %i, -1;"), lanes(|_| -9_i32 as u32));
}

#[test]
fn halves_of_a_warp_may_have_their_own_mask() {
    let text = "and.b32 %i, %tx, 16;\nshl.b32 %m, 65535, %i;\nshfl.sync.bfly.b32 %d, %tx, 8, 31, %m;";
    assert_eq!(warp(".reg .b32 %i, %m;", text), lanes(|lane| lane ^ 8));
}

#[test]
fn special_registers() {
    let body = "mov.u32 %d, %laneid;\nmov.u32 %m, %lanemask_lt;\npopc.b32 %m, %m;\nmad.lo.u32 %d, %m, 100, %d;";
    assert_eq!(warp(".reg .b32 %m;", body), lanes(|lane| 101 * lane));
}

#[test]
fn local_memory_belongs_to_the_thread() {
    let text = "mov.u64 %a, depot;\ncvta.local.u64 %g, %a;\nst.local.u32 [%a+4], %tx;\nst.u32 [%g+8], %tx;\n\
                ld.u32 %d, [%g+4];\nld.local.u32 %i, [depot+8];\nadd.u32 %d, %d, %i;";
    let declarations = ".local .align 8 .b8 depot[16]; .reg .b64 %a, %g; .reg .b32 %i;";
    assert_eq!(warp(declarations, text), lanes(|lane| 2 * lane));
}

#[test]
fn device_functions_are_inlined() {
    let text = format!(
        "{HEADER}.func (.param .b32 r) square(.param .b32 x)\n{{\n.reg .b32 %v;\n.reg .pred %q;\nld.param.u32 %v, [x];\n\
         setp.gt.u32 %q, %v, 100;\n@%q bra $big;\nmul.lo.u32 %v, %v, %v;\nst.param.b32 [r+0], %v;\nret;\n$big:\n\
         st.param.b32 [r+0], 7;\nret;\n}}\n.visible .entry k(.param .u64 p)\n{{\n.reg .b32 %t, %v; .reg .b64 %p, %at;\n\
         ld.param.u64 %p, [p];\nmov.u32 %t, %tid.x;\n{{\n.param .b32 param0;\nst.param.b32 [param0+0], %t;\n\
         .param .b32 retval0;\ncall.uni (retval0), square, (param0);\nld.param.b32 %v, [retval0+0];\n}}\n\
         mad.wide.u32 %at, %t, 4, %p;\nst.global.u32 [%at], %v;\nret;\n}}\n"
    );
    let table = device();
    let output = table.allocate(4 * 128).expect("room");
    run(&text, &table, &shape(1, 128), &[output], &Settings::default()).expect("runs");
    let expected: Vec<u32> = (0..128).map(|t| if t > 100 { 7 } else { t * t }).collect();
    assert_eq!(download::<u32>(&table, output, 128), expected);
}

#[test]
fn module_variables_hold_their_initial_value() {
    let text = format!(
        "{HEADER}.const .align 4 .b8 c[8] = {{1, 0, 0, 0, 2, 0, 0, 0}};\n.global .align 4 .u32 g = 40;\n\
         .visible .entry k(.param .u64 p)\n{{\n.reg .b32 %a, %b; .reg .b64 %p;\nld.param.u64 %p, [p];\n\
         ld.const.u32 %a, [c+4];\nld.global.u32 %b, [g];\nadd.u32 %a, %a, %b;\nst.global.u32 [%p], %a;\nret;\n}}\n"
    );
    let table = device();
    let output = table.allocate(4).expect("room");
    run(&text, &table, &shape(1, 1), &[output], &Settings::default()).expect("runs");
    assert_eq!(download::<u32>(&table, output, 1), [42]);
    let module = Module::parse(&text).expect("valid");
    assert_eq!(module.global("c").map(|global| global.size), Some(8));
}

#[test]
fn a_block_reduction_gives_the_same_under_every_seed() {
    let declarations = ".shared .align 4 .b8 sums[16]; .reg .b32 %v, %w, %l; .reg .pred %q; .reg .b64 %at;";
    let body = "redux.sync.add.u32 %v, %tx, -1;\nshr.u32 %w, %tx, 5;\nshl.b32 %w, %w, 2;\nmov.u32 %l, sums;\n\
                add.u32 %w, %w, %l;\nand.b32 %l, %tx, 31;\nsetp.eq.u32 %q, %l, 0;\n@%q st.shared.u32 [%w], %v;\n\
                bar.sync 0;\nld.shared.v4.u32 {%v, %w, %l, %tx}, [sums];\nadd.u32 %v, %v, %w;\nadd.u32 %l, %l, %tx;\n\
                add.u32 %v, %v, %l;\nst.global.u32 [%p0], %v;";
    for seed in 0..20 {
        let table = device();
        let output = table.allocate(4).expect("room");
        let settings = Settings { seed, ..Settings::default() };
        run(&kernel(1, declarations, body), &table, &shape(3, 128), &[output], &settings).expect("runs");
        assert_eq!(download::<u32>(&table, output, 1), [128 * 127 / 2]);
    }
}

#[test]
fn barriers_that_reduce() {
    let declarations = ".reg .pred %q, %any, %all; .reg .b32 %n, %r; .reg .b64 %at;";
    let body = "setp.lt.u32 %q, %tx, 40;\nbar.red.popc.u32 %n, 0, %q;\nbar.red.or.pred %any, 0, %q;\n\
                bar.red.and.pred %all, 0, %q;\nselp.u32 %r, 100, 0, %any;\nadd.u32 %n, %n, %r;\n\
                selp.u32 %r, 1000, 0, %all;\nadd.u32 %n, %n, %r;\nmad.wide.u32 %at, %tx, 4, %p0;\n\
                st.global.u32 [%at], %n;";
    let table = device();
    let output = table.allocate(4 * 96).expect("room");
    run(&kernel(1, declarations, body), &table, &shape(1, 96), &[output], &Settings::default()).expect("runs");
    assert_eq!(download::<u32>(&table, output, 96), [140; 96]);
}

#[test]
fn atomics() {
    let cases: &[(&str, u64, u64)] = &[
        ("atom.global.add.u64 %old, [%p0], %v;", 5, 5 + 496),
        ("red.global.add.u64 [%p0], %v;", 5, 5 + 496),
        ("atom.global.max.s64 %old, [%p0], %v;", u64::MAX, 31),
        ("atom.global.min.s64 %old, [%p0], %v;", 7, 0),
        ("atom.max.u64 %old, [%p0], %v;", u64::MAX, u64::MAX),
        ("red.global.or.b64 [%p0], %v;", 64, 95),
        ("atom.global.and.b64 %old, [%p0], %v;", 64, 0),
        ("red.global.xor.b64 [%p0], 1;", 6, 6),
        ("atom.global.cas.b64 %old, [%p0], 6, %v;", 6, 0),
        ("atom.relaxed.gpu.global.add.u32 %o, [%p0], 1;", 0xFFFF_FFFF, 31),
        ("red.global.add.f32 [%p0], 0f3F800000;", 0, 32.0_f32.to_bits() as u64),
        ("atom.global.inc.u32 %o, [%p0], 9;", 0, 2),
        ("atom.global.exch.b64 %old, [%p0], 9;", 0, 9),
    ];
    for (instruction, before, after) in cases {
        let table = device();
        let cell = upload(&table, &[*before]);
        let text = kernel(1, ".reg .b64 %v, %old; .reg .b32 %o;", &format!("cvt.u64.u32 %v, %tx;\n{instruction}"));
        run(&text, &table, &shape(1, 32), &[cell], &Settings::default()).expect("runs");
        assert_eq!(download::<u64>(&table, cell, 1), [*after], "{instruction}");
    }
}

#[test]
fn blocks_and_grids_have_three_axes() {
    let declarations = ".reg .b32 %x, %y, %z, %n; .reg .b64 %at;";
    let body = "mov.u32 %x, %ctaid.x;\nmov.u32 %y, %ctaid.y;\nmov.u32 %z, %ctaid.z;\nmad.lo.u32 %y, %z, 3, %y;\n\
                mad.lo.u32 %x, %y, 2, %x;\nmov.u32 %y, %tid.y;\nmov.u32 %z, %tid.z;\nmad.lo.u32 %y, %z, 3, %y;\n\
                mad.lo.u32 %y, %y, 4, %tx;\nmad.lo.u32 %n, %x, 24, %y;\nmad.wide.u32 %at, %n, 4, %p0;\n\
                st.global.u32 [%at], %n;";
    let table = device();
    let config = LaunchConfig { grid: [2, 3, 2], block: [4, 3, 2], dynamic_shared_bytes: 0 };
    let output = table.allocate(4 * 12 * 24).expect("room");
    run(&kernel(1, declarations, body), &table, &config, &[output], &Settings::default()).expect("runs");
    assert_eq!(download::<u32>(&table, output, 288), (0..288).collect::<Vec<_>>());
}

#[test]
fn unknown_instructions_are_refused_when_the_module_is_loaded() {
    for (instruction, told) in [
        ("frobnicate.u32 %d, 1;", "unknown instruction frobnicate.u32"),
        ("add.u32.odd %d, %d, 1;", "modifier .odd"),
        ("wgmma.fence.sync.aligned;", "unknown instruction wgmma.fence.sync.aligned"),
        ("add.u64 %d, %d, 1;", "32 bits"),
        ("mov.u32 %d, %nothing;", "%nothing"),
        ("add.rz.f64 %e, %e, %e;", "f64"),
    ] {
        let text = kernel(0, ".reg .b32 %d; .reg .b64 %e;", &format!("mov.u32 %d, 1;\n{instruction}"));
        let line = text.lines().position(|line| line == instruction).expect("there") as u32 + 1;
        let error = Module::parse(&text).expect_err(instruction);
        assert!(error.line == line && error.message.contains(told), "{instruction}: {error}, expected line {line}");
    }
}

#[test]
fn malformed_launches_are_refused() {
    let table = device();
    let text = kernel(0, "", "").replace("()\n{", "()\n.maxntid 64, 1, 1\n{");
    let kind = |config: LaunchConfig| run(&text, &table, &config, &[], &Settings::default()).map_err(|f| f.kind);
    assert!(kind(shape(1, 64)).is_ok());
    assert_eq!(kind(shape(1, 65)), Err(FaultKind::OutOfResources));
    assert_eq!(kind(shape(0, 32)), Err(FaultKind::InvalidValue));
    assert_eq!(kind(shape(1, 2000)), Err(FaultKind::InvalidValue));
    let much = LaunchConfig { dynamic_shared_bytes: 200 << 10, ..shape(1, 32) };
    assert_eq!(kind(much), Err(FaultKind::OutOfResources));
    let parameters = run(&text, &table, &shape(1, 32), &[1], &Settings::default()).map_err(|f| f.kind);
    assert_eq!(parameters, Err(FaultKind::InvalidValue));
}
