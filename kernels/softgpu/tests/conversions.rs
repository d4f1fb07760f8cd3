//! `mov`, `cvt` and 16-bit floats against results computed by hand.

#![allow(clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use support::evaluate;

fn check(cases: &[(&str, &[u64], u64)]) {
    for (instruction, inputs, expected) in cases {
        let found = evaluate(instruction, inputs);
        assert_eq!(found, *expected, "{instruction} {inputs:#x?}: {found:#x}, expected {expected:#x}");
    }
}

fn f(value: f32) -> u64 {
    u64::from(value.to_bits())
}

fn d(value: f64) -> u64 {
    value.to_bits()
}

#[test]
fn moves() {
    check(&[
        ("mov.b64 %dd, {%a0, %a1};", &[1, 2], 2 << 32 | 1),
        ("{.reg .b32 %t; mov.b64 {%t, %d}, %b0;}", &[2 << 32 | 1], 2),
        ("mov.b64 {%d, _}, %b0;", &[2 << 32 | 1], 1),
        ("mov.b32 %d, {%s0, %s1};", &[0x1111, 0x2222], 0x2222_1111),
        ("mov.b32 %d, {0, %s1};", &[0x1111, 0x2222], 0x2222_0000),
        ("{.reg .b16 %t; mov.b32 {%t, %h}, %a0;}", &[0x2222_1111], 0x2222),
        ("mov.b64 %dd, {%s0, %s1, %s2, %s3};", &[1, 2, 3, 4], 0x0004_0003_0002_0001),
        ("mov.b32 {%h, _}, %a0;", &[0x2222_1111], 0x1111),
        ("mov.u32 %d, WARP_SZ;", &[], 32),
        ("mov.u32 %d, -8;", &[], 0xFFFF_FFF8),
        ("mov.u32 %d, 0xffU;", &[], 255),
    ]);
}

#[test]
fn integers() {
    check(&[
        ("cvt.s64.s32 %dd, %a0;", &[0xFFFF_FFFF], u64::MAX),
        ("cvt.u64.u32 %dd, %a0;", &[0xFFFF_FFFF], 0xFFFF_FFFF),
        ("cvt.u32.u64 %d, %b0;", &[5 << 32 | 7], 7),
        ("cvt.s32.s16 %d, %s0;", &[0x8000], 0xFFFF_8000),
        ("cvt.u32.u16 %d, %s0;", &[0x8000], 0x8000),
        ("cvt.s32.s8 %d, %a0;", &[0x80], 0xFFFF_FF80),
        ("cvt.u16.u32 %h, %a0;", &[0x12345], 0x2345),
        ("cvt.u32.u8 %d, %a0;", &[0x1FF], 0xFF),
        ("cvt.sat.u8.s32 %d, %a0;", &[300], 255),
        ("cvt.sat.u8.s32 %d, %a0;", &[0xFFFF_FFFF], 0),
        ("cvt.sat.s8.s32 %d, %a0;", &[(-300_i32) as u32 as u64], 0xFFFF_FF80),
        ("cvt.sat.s32.s64 %d, %b0;", &[1 << 40], 0x7FFF_FFFF),
    ]);
}

#[test]
fn floats_to_integers() {
    let nan = 0x7FC0_0000;
    check(&[
        ("cvt.rni.s32.f32 %d, %a0;", &[f(2.5)], 2),
        ("cvt.rni.s32.f32 %d, %a0;", &[f(3.5)], 4),
        ("cvt.rzi.s32.f32 %d, %a0;", &[f(-2.9)], (-2_i32) as u32 as u64),
        ("cvt.rmi.s32.f32 %d, %a0;", &[f(-2.1)], (-3_i32) as u32 as u64),
        ("cvt.rpi.s32.f32 %d, %a0;", &[f(2.1)], 3),
        ("cvt.rzi.s32.f32 %d, %a0;", &[f(3e9)], 0x7FFF_FFFF),
        ("cvt.rzi.u32.f32 %d, %a0;", &[f(-3.0)], 0),
        ("cvt.rzi.s32.f32 %d, %a0;", &[nan], 0),
        ("cvt.rzi.s64.f32 %dd, %a0;", &[nan], 1 << 63),
        ("cvt.rni.s64.f64 %dd, %b0;", &[d(-1.5)], (-2_i64) as u64),
        ("cvt.rzi.s64.f64 %dd, %b0;", &[d(1e30)], i64::MAX as u64),
        ("cvt.rzi.u64.f64 %dd, %b0;", &[d(1e18)], 1_000_000_000_000_000_000),
        ("cvt.rzi.s32.f64 %d, %b0;", &[d(-7.9)], (-7_i32) as u32 as u64),
        ("cvt.rzi.u32.bf16 %d, %s0;", &[0x4040], 3),
    ]);
}

#[test]
fn integers_to_floats() {
    check(&[
        ("cvt.rn.f32.s32 %d, %a0;", &[0x0100_0001], f(16_777_216.0)),
        ("cvt.rp.f32.s32 %d, %a0;", &[0x0100_0001], f(16_777_218.0)),
        ("cvt.rz.f32.u32 %d, %a0;", &[0xFFFF_FFFF], f(4_294_967_040.0)),
        ("cvt.rn.f32.u32 %d, %a0;", &[0xFFFF_FFFF], f(4_294_967_296.0)),
        ("cvt.rn.f32.s64 %d, %b0;", &[(-3_i64) as u64], f(-3.0)),
        // Half a unit of an f32 and a bit that an f64 cannot hold: rounding twice would give the even neighbour.
        ("cvt.rn.f32.u64 %d, %b0;", &[(1 << 63) + (1 << 39) + 1], f(9.223_373e18)),
        ("cvt.rn.f32.u16 %d, %s0;", &[7], f(7.0)),
        ("cvt.rn.f64.s32 %dd, %a0;", &[0xFFFF_FFFF], d(-1.0)),
        ("cvt.rn.f64.s64 %dd, %b0;", &[(1 << 53) + 3], d(9_007_199_254_740_996.0)),
        ("cvt.rn.f64.u64 %dd, %b0;", &[u64::MAX], d(18_446_744_073_709_551_616.0)),
        ("cvt.rn.bf16.s32 %h, %a0;", &[3], 0x4040),
    ]);
}

#[test]
fn floats_to_floats() {
    check(&[
        ("cvt.f64.f32 %dd, %a0;", &[f(0.1)], d(f64::from(0.1_f32))),
        ("cvt.rn.f32.f64 %d, %b0;", &[d(0.1)], f(0.1)),
        ("cvt.rz.f32.f64 %d, %b0;", &[d(0.1)], f(0.1) - 1),
        ("cvt.rm.f32.f64 %d, %b0;", &[d(0.1)], f(0.1) - 1),
        ("cvt.rp.f32.f64 %d, %b0;", &[d(0.1)], f(0.1)),
        ("cvt.sat.f32.f32 %d, %a0;", &[f(1.5)], f(1.0)),
        ("cvt.sat.f32.f32 %d, %a0;", &[0x7FC0_0000], 0),
        ("cvt.ftz.f32.f32 %d, %a0;", &[1], 0),
        ("cvt.rni.f32.f32 %d, %a0;", &[f(2.5)], f(2.0)),
        ("cvt.rmi.f32.f32 %d, %a0;", &[f(-2.5)], f(-3.0)),
        ("cvt.rzi.f64.f64 %dd, %b0;", &[d(-2.5)], d(-2.0)),
        ("cvt.rn.bf16.f32 %h, %a0;", &[0x3F80_8000], 0x3F80),
        ("cvt.rn.bf16.f32 %h, %a0;", &[0x3F81_8000], 0x3F82),
        ("cvt.rz.bf16.f32 %h, %a0;", &[0x3F80_FFFF], 0x3F80),
        ("cvt.rn.bf16.f32 %h, %a0;", &[0x7F80_0001], 0x7FFF),
        ("cvt.rn.relu.bf16.f32 %h, %a0;", &[f(-1.0)], 0),
        ("cvt.f32.bf16 %d, %s0;", &[0x4040], f(3.0)),
        ("cvt.rn.bf16x2.f32 %d, %a0, %a1;", &[f(1.0), f(2.0)], 0x3F80_4000),
        ("cvt.rn.f16x2.f32 %d, %a0, %a1;", &[f(1.0), f(2.0)], 0x3C00_4000),
        ("cvt.rn.f16.f32 %h, %a0;", &[f(1.0 + 1.0 / 2048.0)], 0x3C00),
        ("cvt.rz.f16.f32 %h, %a0;", &[f(1.999_99)], 0x3FFF),
        ("cvt.rn.f16.f32 %h, %a0;", &[f(1e6)], 0x7C00),
        ("cvt.f32.f16 %d, %s0;", &[0xC000], f(-2.0)),
        ("cvt.rna.tf32.f32 %d, %a0;", &[0x3F80_1000], 0x3F80_2000),
        ("cvt.rn.tf32.f32 %d, %a0;", &[0x3F80_1000], 0x3F80_0000),
    ]);
}

#[test]
fn arithmetic_of_16_bit_floats() {
    check(&[
        ("fma.rn.bf16 %h, %s0, %s1, %s2;", &[0x3F80, 0x4000, 0x4040], 0x40A0),
        // 1 + 2^-8 is a tie, which 2^-60 more decides.
        ("fma.rn.bf16 %h, %s0, %s1, %s2;", &[0x3F81, 0x3F00, 0x2180], 0x3F01),
        ("add.rn.bf16 %h, %s0, %s1;", &[0x3F80, 0x3B80], 0x3F80),
        ("fma.rn.bf16x2 %d, %a0, %a1, %a2;", &[0x3F80_4000, 0x4000_4000, 0x0000_3F80], 0x4000_40A0),
        ("max.bf16x2 %d, %a0, %a1;", &[0x3F80_4000, 0x4000_3F80], 0x4000_4000),
        ("min.NaN.bf16 %h, %s0, %s1;", &[0x7FC0, 0x3F80], 0x7FFF),
        ("min.bf16 %h, %s0, %s1;", &[0x7FC0, 0x3F80], 0x3F80),
        ("neg.bf16x2 %d, %a0;", &[0x3F80_C000], 0xBF80_4000),
        ("abs.bf16 %h, %s0;", &[0xBF80], 0x3F80),
        ("add.f16x2 %d, %a0, %a1;", &[0x3C00_4000, 0x3C00_3C00], 0x4000_4200),
        ("mul.f16 %h, %s0, %s1;", &[0x4000, 0x4200], 0x4600),
        ("sub.f16 %h, %s0, %s1;", &[0x4000, 0x4200], 0xBC00),
        ("fma.rn.f16 %h, %s0, %s1, %s2;", &[0x4000, 0x4200, 0x3C00], 0x4700),
    ]);
}
