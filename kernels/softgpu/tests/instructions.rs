//! Instructions against results computed by hand: one table per family.

#![allow(clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use support::evaluate;

fn check32(cases: &[(&str, &[u32], u32)]) {
    for (instruction, inputs, expected) in cases {
        let inputs: Vec<u64> = inputs.iter().map(|&v| u64::from(v)).collect();
        let found = evaluate(instruction, &inputs);
        assert_eq!(found, u64::from(*expected), "{instruction} {inputs:#x?}: {found:#x}, expected {expected:#x}");
    }
}

fn check64(cases: &[(&str, &[u64], u64)]) {
    for (instruction, inputs, expected) in cases {
        let found = evaluate(instruction, inputs);
        assert_eq!(found, *expected, "{instruction} {inputs:#x?}: {found:#x}, expected {expected:#x}");
    }
}

const MINUS: u32 = u32::MAX;

#[test]
fn integers_of_32_bits() {
    check32(&[
        ("add.s32 %d, %a0, %a1;", &[5, MINUS], 4),
        ("add.sat.s32 %d, %a0, %a1;", &[0x7FFF_FFFF, 1], 0x7FFF_FFFF),
        ("sub.u32 %d, %a0, %a1;", &[3, 5], MINUS - 1),
        ("mul.lo.s32 %d, %a0, %a1;", &[0x1_0001, 0x1_0001], 0x2_0001),
        ("mul.hi.u32 %d, %a0, %a1;", &[MINUS, MINUS], MINUS - 1),
        ("mul.hi.s32 %d, %a0, %a1;", &[MINUS, MINUS], 0),
        ("mad.lo.s32 %d, %a0, %a1, %a2;", &[3, 4, 5], 17),
        ("mad.hi.u32 %d, %a0, %a1, %a2;", &[MINUS, 2, 7], 8),
        ("div.s32 %d, %a0, %a1;", &[MINUS - 6, 2], MINUS - 2),
        ("div.u32 %d, %a0, %a1;", &[100, 7], 14),
        ("rem.s32 %d, %a0, %a1;", &[MINUS - 6, 2], MINUS),
        ("rem.u32 %d, %a0, %a1;", &[100, 7], 2),
        ("min.s32 %d, %a0, %a1;", &[MINUS, 1], MINUS),
        ("min.u32 %d, %a0, %a1;", &[MINUS, 1], 1),
        ("max.s32 %d, %a0, %a1;", &[MINUS, 1], 1),
        ("max.u32 %d, %a0, %a1;", &[MINUS, 1], MINUS),
        ("abs.s32 %d, %a0;", &[MINUS - 4], 5),
        ("neg.s32 %d, %a0;", &[5], MINUS - 4),
        ("sad.s32 %d, %a0, %a1, %a2;", &[MINUS, 3, 10], 14),
    ]);
}

#[test]
fn bitwise() {
    check32(&[
        ("and.b32 %d, %a0, %a1;", &[0b1100, 0b1010], 0b1000),
        ("or.b32 %d, %a0, %a1;", &[0b1100, 0b1010], 0b1110),
        ("xor.b32 %d, %a0, %a1;", &[0b1100, 0b1010], 0b0110),
        ("not.b32 %d, %a0;", &[0], MINUS),
        ("cnot.b32 %d, %a0;", &[0], 1),
        ("lop3.b32 %d, %a0, %a1, %a2, 0x96;", &[0b1100, 0b1010, 0b1111], 0b1001),
        ("lop3.b32 %d, %a0, %a1, %a2, 0xE8;", &[0b1100, 0b1010, 0b0110], 0b1110),
        ("lop3.b32 %d, %a0, %a1, %a2, 0xCA;", &[0xFF00, 0x1234, 0xABCD], 0x12CD),
        ("shl.b32 %d, %a0, %a1;", &[1, 31], 1 << 31),
        ("shl.b32 %d, %a0, %a1;", &[1, 32], 0),
        ("shr.u32 %d, %a0, %a1;", &[1 << 31, 31], 1),
        ("shr.s32 %d, %a0, %a1;", &[1 << 31, 40], MINUS),
        ("shf.l.wrap.b32 %d, %a0, %a1, %a2;", &[0x8000_0001, 0x0000_00FF, 4], 0x0000_0FF8),
        ("shf.r.wrap.b32 %d, %a0, %a1, %a2;", &[0x8000_0010, 0x0000_00FF, 4], 0xF800_0001),
        ("shf.r.clamp.b32 %d, %a0, %a1, %a2;", &[1, 7, 99], 7),
        ("bfe.u32 %d, %a0, %a1, %a2;", &[0xABCD, 4, 8], 0xBC),
        ("bfe.s32 %d, %a0, %a1, %a2;", &[0xABCD, 4, 8], 0xFFFF_FFBC),
        ("bfe.s32 %d, %a0, %a1, %a2;", &[0x8000_0000, 30, 8], 0xFFFF_FFFE),
        ("bfe.u32 %d, %a0, %a1, %a2;", &[MINUS, 0, 0], 0),
        ("bfi.b32 %d, %a0, %a1, %a2, %a3;", &[0xF, 0xAAAA_0000, 4, 8], 0xAAAA_00F0),
        ("bfi.b32 %d, %a0, %a1, %a2, %a3;", &[0xF, 5, 32, 8], 5),
        ("brev.b32 %d, %a0;", &[1], 1 << 31),
        ("popc.b32 %d, %a0;", &[0xF0F0], 8),
        ("clz.b32 %d, %a0;", &[1], 31),
        ("clz.b32 %d, %a0;", &[0], 32),
        ("bfind.u32 %d, %a0;", &[0x100], 8),
        ("bfind.s32 %d, %a0;", &[MINUS - 1], 0),
        ("bfind.u32 %d, %a0;", &[0], MINUS),
        ("bfind.shiftamt.u32 %d, %a0;", &[1], 31),
        ("prmt.b32 %d, %a0, %a1, 0x5410;", &[0x3322_1100, 0x7766_5544], 0x5544_1100),
        ("prmt.b32 %d, %a0, %a1, %a2;", &[0x0000_0080, 0, 0x1118], 0x0000_00FF),
    ]);
    check64(&[
        ("popc.b64 %d, %b0;", &[u64::MAX], 64),
        ("clz.b64 %d, %b0;", &[1], 63),
        ("brev.b64 %dd, %b0;", &[1], 1 << 63),
        ("bfi.b64 %dd, %b0, %b1, 32, 32;", &[7, 9], 7 << 32 | 9),
        ("bfe.s64 %dd, %b0, 60, 4;", &[1 << 63], 0xFFFF_FFFF_FFFF_FFF8),
        ("shl.b64 %dd, %b0, %a1;", &[1, 63], 1 << 63),
        ("shr.s64 %dd, %b0, 1;", &[1 << 63], 3 << 62),
        ("shr.u64 %dd, %b0, 63;", &[1 << 63], 1),
    ]);
}

#[test]
fn integers_of_64_and_16_bits() {
    check64(&[
        ("add.s64 %dd, %b0, %b1;", &[u64::MAX, 3], 2),
        ("sub.s64 %dd, %b0, 1;", &[0], u64::MAX),
        ("mul.lo.s64 %dd, %b0, %b1;", &[1 << 40, 3], 3 << 40),
        ("mul.hi.u64 %dd, %b0, %b1;", &[u64::MAX, u64::MAX], u64::MAX - 1),
        ("mul.hi.s64 %dd, %b0, %b1;", &[u64::MAX, 2], u64::MAX),
        ("mad.lo.s64 %dd, %b0, %b1, %b2;", &[3, 4, 5], 17),
        ("div.s64 %dd, %b0, %b1;", &[(-7_i64) as u64, 2], (-3_i64) as u64),
        ("rem.u64 %dd, %b0, %b1;", &[u64::MAX, 10], 5),
        ("min.s64 %dd, %b0, %b1;", &[u64::MAX, 1], u64::MAX),
        ("max.u64 %dd, %b0, %b1;", &[u64::MAX, 1], u64::MAX),
        ("mul.wide.u32 %dd, %a0, %a1;", &[0xFFFF_FFFF, 0xFFFF_FFFF], 0xFFFF_FFFE_0000_0001),
        ("mul.wide.s32 %dd, %a0, %a1;", &[0xFFFF_FFFF, 2], (-2_i64) as u64),
        ("mad.wide.u32 %dd, %a0, %a1, %b2;", &[3, 4, 5], 17),
        ("mad.wide.s32 %dd, %a0, -1, %b2;", &[3, 0, 5], 2),
        ("mul.wide.u16 %d, %s0, %s1;", &[0xFFFF, 2], 0x1_FFFE),
        ("mul.wide.s16 %d, %s0, %s1;", &[0xFFFF, 2], 0xFFFF_FFFE),
        ("add.s16 %h, %s0, %s1;", &[0xFFFF, 2], 1),
        ("mul.lo.s16 %h, %s0, %s1;", &[0x100, 0x101], 0x100),
        ("shr.s16 %h, %s0, 4;", &[0x8000], 0xF800),
        ("shr.u16 %h, %s0, %a1;", &[0x8000, 4], 0x800),
        ("min.s16 %h, %s0, %s1;", &[0x8000, 1], 0x8000),
        ("and.b16 %h, %s0, 255;", &[0xABCD], 0xCD),
        ("not.b16 %h, %s0;", &[0xABCD], 0x5432),
        ("{.reg .b32 %t; add.cc.u32 %t, %a0, %a1; addc.u32 %d, 0, 0;}", &[0xFFFF_FFFF, 1], 1),
        ("{.reg .b32 %t; sub.cc.u32 %t, %a0, %a1; subc.u32 %d, 5, 0;}", &[0, 1], 4),
        ("{.reg .b32 %t; mad.lo.cc.u32 %t, %a0, %a1, %a2; madc.hi.u32 %d, %a0, %a1, 7;}", &[0xFFFF_FFFF, 2, 2], 9),
        ("{.reg .b64 %t; add.cc.u64 %t, %b0, %b1; addc.u64 %dd, %b1, 0;}", &[u64::MAX, 1], 2),
    ]);
}

fn bits(value: f32) -> u32 {
    value.to_bits()
}

#[test]
fn floats_of_32_bits() {
    let (nan, tiny, inf) = (0x7FC0_0000, 1, f32::INFINITY.to_bits());
    let third = bits(1.0_f32 / 3.0);
    check32(&[
        ("add.f32 %d, %a0, %a1;", &[bits(1.5), bits(2.25)], bits(3.75)),
        ("add.rz.f32 %d, %a0, %a1;", &[bits(1.0), bits(-1e-9)], bits(1.0) - 1),
        ("add.rp.f32 %d, %a0, %a1;", &[bits(1.0), bits(1e-9)], bits(1.0) + 1),
        ("add.rm.f32 %d, %a0, %a1;", &[bits(-1.0), bits(-1e-9)], bits(-1.0) + 1),
        ("sub.f32 %d, %a0, %a1;", &[bits(1.5), bits(2.25)], bits(-0.75)),
        ("mul.f32 %d, %a0, %a1;", &[bits(1.5), bits(-2.0)], bits(-3.0)),
        ("mul.ftz.f32 %d, %a0, %a1;", &[tiny, bits(2.0)], 0),
        ("mul.f32 %d, %a0, %a1;", &[tiny, bits(2.0)], 2),
        ("mul.sat.f32 %d, %a0, %a1;", &[bits(3.0), bits(2.0)], bits(1.0)),
        ("fma.rn.f32 %d, %a0, %a1, %a2;", &[bits(1.0) + 1, bits(1.0) + 1, bits(-1.0) + 2], bits(2.0_f32.powi(-46))),
        ("fma.rm.f32 %d, %a0, 0f437C0000, 0f4B400001;", &[bits(0.5 + 1e-7)], 0x4B40_007F),
        ("fma.rp.f32 %d, %a0, 0f437C0000, 0f4B400001;", &[bits(0.5 + 1e-7)], 0x4B40_0080),
        ("div.rn.f32 %d, %a0, %a1;", &[bits(1.0), bits(3.0)], third),
        ("div.rm.f32 %d, %a0, %a1;", &[bits(1.0), bits(3.0)], third - 1),
        ("div.rz.f32 %d, %a0, %a1;", &[bits(-1.0), bits(3.0)], bits(-1.0 / 3.0) - 1),
        ("rcp.rn.f32 %d, %a0;", &[bits(3.0)], third),
        ("sqrt.rn.f32 %d, %a0;", &[bits(2.0)], bits(2.0_f32.sqrt())),
        ("sqrt.rz.f32 %d, %a0;", &[bits(2.0)], 0x3FB5_04F3),
        ("min.f32 %d, %a0, %a1;", &[nan, bits(1.0)], bits(1.0)),
        ("max.f32 %d, %a0, %a1;", &[bits(1.0), nan], bits(1.0)),
        ("max.NaN.f32 %d, %a0, %a1;", &[bits(1.0), nan], 0x7FFF_FFFF),
        ("min.f32 %d, %a0, %a1;", &[0, 1 << 31], 1 << 31),
        ("max.f32 %d, %a0, %a1;", &[1 << 31, 0], 0),
        ("abs.f32 %d, %a0;", &[bits(-2.0)], bits(2.0)),
        ("neg.f32 %d, %a0;", &[bits(2.0)], bits(-2.0)),
        ("copysign.f32 %d, %a0, %a1;", &[bits(-1.0), bits(2.0)], bits(-2.0)),
        ("ex2.approx.ftz.f32 %d, %a0;", &[bits(3.0)], bits(8.0)),
        ("lg2.approx.f32 %d, %a0;", &[bits(8.0)], bits(3.0)),
        ("rcp.approx.ftz.f32 %d, %a0;", &[bits(4.0)], bits(0.25)),
        ("rcp.approx.ftz.f32 %d, %a0;", &[tiny], inf),
        ("rsqrt.approx.f32 %d, %a0;", &[bits(4.0)], bits(0.5)),
        ("sqrt.approx.f32 %d, %a0;", &[bits(9.0)], bits(3.0)),
        ("sin.approx.f32 %d, %a0;", &[0], 0),
        ("cos.approx.f32 %d, %a0;", &[0], bits(1.0)),
        ("tanh.approx.f32 %d, %a0;", &[0], 0),
        ("div.approx.f32 %d, %a0, %a1;", &[bits(6.0), bits(3.0)], bits(2.0)),
        ("div.full.f32 %d, %a0, %a1;", &[bits(6.0), bits(3.0)], bits(2.0)),
        ("mov.b32 %d, 0f3F800000;", &[], bits(1.0)),
    ]);
}

#[test]
fn floats_of_64_bits() {
    let f = f64::to_bits;
    check64(&[
        ("add.f64 %dd, %b0, %b1;", &[f(1.5), f(2.25)], f(3.75)),
        ("sub.rn.f64 %dd, %b0, %b1;", &[f(1.5), f(2.25)], f(-0.75)),
        ("mul.f64 %dd, %b0, %b1;", &[f(1.5), f(3.0)], f(4.5)),
        ("fma.rn.f64 %dd, %b0, %b1, %b2;", &[f(0.1), f(10.0), f(-1.0)], f(0.1_f64.mul_add(10.0, -1.0))),
        ("div.rn.f64 %dd, %b0, %b1;", &[f(1.0), f(3.0)], f(1.0 / 3.0)),
        ("sqrt.rn.f64 %dd, %b0;", &[f(2.0)], f(2.0_f64.sqrt())),
        ("rcp.rn.f64 %dd, %b0;", &[f(3.0)], f(1.0 / 3.0)),
        ("neg.f64 %dd, %b0;", &[f(3.0)], f(-3.0)),
        ("abs.f64 %dd, %b0;", &[f(-3.0)], f(3.0)),
        ("min.f64 %dd, %b0, %b1;", &[f(f64::NAN), f(3.0)], f(3.0)),
        ("max.f64 %dd, %b0, %b1;", &[f(-1.0), f(3.0)], f(3.0)),
        ("rcp.approx.ftz.f64 %dd, %b0;", &[f(4.0)], f(0.25)),
        ("mov.f64 %dd, 0d3FF8000000000000;", &[], f(1.5)),
    ]);
}

#[test]
fn comparisons_and_selection() {
    let (one, two, nan) = (bits(1.0), bits(2.0), 0x7FC0_0000);
    check32(&[
        ("setp.eq.s32 %q, %a0, %a1;", &[1, 1], 1),
        ("setp.ne.s32 %q, %a0, %a1;", &[1, 1], 0),
        ("setp.lt.s32 %q, %a0, %a1;", &[MINUS, 1], 1),
        ("setp.lt.u32 %q, %a0, %a1;", &[MINUS, 1], 0),
        ("setp.lo.u32 %q, %a0, %a1;", &[1, 2], 1),
        ("setp.ge.s32 %q, %a0, %a1;", &[1, 1], 1),
        ("setp.gt.u32 %q, %a0, %a1;", &[1, 1], 0),
        ("setp.le.s64 %q, %b0, %b1;", &[1, 1], 1),
        ("setp.gt.s16 %q, %s0, %s1;", &[1, 0xFFFF], 1),
        ("setp.gt.u16 %q, %s0, %s1;", &[1, 0xFFFF], 0),
        ("setp.lt.f32 %q, %a0, %a1;", &[one, two], 1),
        ("setp.lt.f32 %q, %a0, %a1;", &[nan, two], 0),
        ("setp.ltu.f32 %q, %a0, %a1;", &[nan, two], 1),
        ("setp.ne.f32 %q, %a0, %a1;", &[nan, nan], 0),
        ("setp.neu.f32 %q, %a0, %a1;", &[nan, nan], 1),
        ("setp.equ.f32 %q, %a0, %a1;", &[one, two], 0),
        ("setp.nan.f32 %q, %a0, %a1;", &[one, nan], 1),
        ("setp.num.f32 %q, %a0, %a1;", &[one, nan], 0),
        ("setp.leu.f32 %q, %a0, %a1;", &[two, one], 0),
        ("setp.geu.f32 %q, %a0, %a1;", &[two, one], 1),
        ("setp.gt.bf16 %q, %s0, %s1;", &[0x4000, 0x3F80], 1),
        ("setp.lt.ftz.f32 %q, %a0, %a1;", &[0, 1], 0),
        ("setp.eq.s32 %q2, 1, 1;\nsetp.lt.and.s32 %q, %a0, %a1, !%q2;", &[1, 2], 0),
        ("setp.eq.s32 %q2, 1, 1;\nsetp.lt.or.s32 %q, %a0, %a1, %q2;", &[2, 1], 1),
        ("setp.lt.s32 %q2|%q, %a0, %a1;", &[1, 2], 0),
        ("set.lt.u32.f32 %d, %a0, %a1;", &[one, two], MINUS),
        ("set.gt.f32.s32 %d, %a0, %a1;", &[2, 1], one),
        ("testp.infinite.f32 %q, %a0;", &[0xFF80_0000], 1),
        ("testp.finite.f32 %q, %a0;", &[nan], 0),
        ("testp.notanumber.f32 %q, %a0;", &[nan], 1),
        ("setp.eq.s32 %q2, 1, 2;\nselp.b32 %d, %a0, %a1, %q2;", &[7, 8], 8),
        ("setp.eq.s32 %q2, 1, 1;\nand.pred %q, %q2, %q2;\nnot.pred %q, %q;", &[], 0),
        ("setp.eq.s32 %q2, 1, 1;\nxor.pred %q, %q2, %q2;\nor.pred %q, %q, %q2;", &[], 1),
        ("setp.eq.s32 %q2, 1, 1;\nmov.pred %q, %q2;", &[], 1),
        ("setp.eq.s32 %q2, 1, 2;\n@%q2 mov.u32 %d, 5;\n@!%q2 mov.u32 %d, 6;", &[], 6),
    ]);
}
