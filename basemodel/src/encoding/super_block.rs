//! ggml's K formats: 256 weights in groups of 16 or 32, whose scales and minima are small integers times an f16 that
//! the whole super-block shares.

use super::packed::{half, unpack};

/// Weights of a super-block.
pub(super) const WEIGHTS: usize = 256;

/// Bytes of the six-bit scales of a super-block, with the minima where there are any.
const SIX_BIT_SCALES: usize = 12;

/// Bytes of a super-block: scales and minima, quants, scale of scales, scale of minima.
pub(super) const Q2_K: usize = WEIGHTS / 16 + WEIGHTS / 4 + 4;
/// Bytes of a super-block: third bits, low bits, scales, scale of scales.
pub(super) const Q3_K: usize = WEIGHTS / 8 + WEIGHTS / 4 + SIX_BIT_SCALES + 2;
/// Bytes of a super-block: scale of scales, scale of minima, scales and minima, nibbles.
pub(super) const Q4_K: usize = 4 + SIX_BIT_SCALES + WEIGHTS / 2;
/// Bytes of a super-block: scale of scales, scale of minima, scales and minima, fifth bits, nibbles.
pub(super) const Q5_K: usize = 4 + SIX_BIT_SCALES + WEIGHTS / 8 + WEIGHTS / 2;
/// Bytes of a super-block: nibbles, bits above, scales, scale of scales.
pub(super) const Q6_K: usize = WEIGHTS / 2 + WEIGHTS / 4 + WEIGHTS / 16 + 2;

pub(super) fn q2_k(bytes: &[u8; Q2_K], out: &mut [f32; WEIGHTS]) {
    let (scales, rest) = bytes.split_at(WEIGHTS / 16);
    let (quants, rest) = rest.split_at(WEIGHTS / 4);
    let (scale, minimum) = (half(rest, 0), half(rest, 2));
    let groups = scales.iter().map(|&s| (scale * f32::from(s & 15), minimum * f32::from(s >> 4)));
    with_minima::<16>(out, &unpack::<2, 32, WEIGHTS>(quants), groups);
}

pub(super) fn q3_k(bytes: &[u8; Q3_K], out: &mut [f32; WEIGHTS]) {
    let (third, rest) = bytes.split_at(WEIGHTS / 8);
    let (low, rest) = rest.split_at(WEIGHTS / 4);
    let (scales, rest) = rest.split_at(SIX_BIT_SCALES);
    let scale = half(rest, 0);
    let third = unpack::<1, 32, WEIGHTS>(third);
    let mut quants = unpack::<2, 32, WEIGHTS>(low).map(u8::cast_signed);
    for (q, third) in quants.iter_mut().zip(third) {
        *q += third.cast_signed() * 4 - 4;
    }
    let scales = sixteen_scales(scales).map(|s| scale * (f32::from(s) - 32.0));
    around_zero(out, &quants, scales);
}

pub(super) fn q4_k(bytes: &[u8; Q4_K], out: &mut [f32; WEIGHTS]) {
    let (scale, minimum) = (half(bytes, 0), half(bytes, 2));
    let (scales, nibbles) = bytes[4..].split_at(SIX_BIT_SCALES);
    let groups = eight_scales(scales, scale, minimum);
    with_minima::<32>(out, &unpack::<4, 32, WEIGHTS>(nibbles), groups);
}

pub(super) fn q5_k(bytes: &[u8; Q5_K], out: &mut [f32; WEIGHTS]) {
    let (scale, minimum) = (half(bytes, 0), half(bytes, 2));
    let (scales, rest) = bytes[4..].split_at(SIX_BIT_SCALES);
    let (fifth, nibbles) = rest.split_at(WEIGHTS / 8);
    let fifth = unpack::<1, 32, WEIGHTS>(fifth);
    let mut quants = unpack::<4, 32, WEIGHTS>(nibbles);
    for (q, fifth) in quants.iter_mut().zip(fifth) {
        *q |= fifth << 4;
    }
    with_minima::<32>(out, &quants, eight_scales(scales, scale, minimum));
}

pub(super) fn q6_k(bytes: &[u8; Q6_K], out: &mut [f32; WEIGHTS]) {
    let (nibbles, rest) = bytes.split_at(WEIGHTS / 2);
    let (above, rest) = rest.split_at(WEIGHTS / 4);
    let (scales, rest) = rest.split_at(WEIGHTS / 16);
    let scale = half(rest, 0);
    let above = unpack::<2, 32, WEIGHTS>(above);
    let mut quants = unpack::<4, 64, WEIGHTS>(nibbles).map(u8::cast_signed);
    for (q, above) in quants.iter_mut().zip(above) {
        *q = (*q | above.cast_signed() << 4) - 32;
    }
    around_zero(out, &quants, scales.iter().map(|s| scale * f32::from(s.cast_signed())));
}

/// Each group times its scale, less its minimum.
fn with_minima<const GROUP: usize>(
    out: &mut [f32; WEIGHTS],
    quants: &[u8; WEIGHTS],
    scales_and_minima: impl IntoIterator<Item = (f32, f32)>,
) {
    let groups = out.as_chunks_mut::<GROUP>().0.iter_mut().zip(quants.as_chunks::<GROUP>().0);
    for ((out, quants), (scale, minimum)) in groups.zip(scales_and_minima) {
        for (x, &q) in out.iter_mut().zip(quants) {
            *x = scale * f32::from(q) - minimum;
        }
    }
}

/// Each 16 times their scale.
fn around_zero(out: &mut [f32; WEIGHTS], quants: &[i8; WEIGHTS], scales: impl IntoIterator<Item = f32>) {
    let groups = out.as_chunks_mut::<16>().0.iter_mut().zip(quants.as_chunks::<16>().0);
    for ((out, quants), scale) in groups.zip(scales) {
        for (x, &q) in out.iter_mut().zip(quants) {
            *x = scale * f32::from(q);
        }
    }
}

/// Six bits each: the nibbles of all sixteen, then the two bits above of all.
fn sixteen_scales(packed: &[u8]) -> [u8; 16] {
    let (nibbles, above) = packed.split_at(8);
    let mut scales = unpack::<4, 8, 16>(nibbles);
    for (scale, above) in scales.iter_mut().zip(unpack::<2, 4, 16>(above)) {
        *scale |= above << 4;
    }
    scales
}

/// Eight scales and eight minima of six bits each, times what the super-block shares. The first four bytes hold the
/// first four scales, the next four the first four minima; their two spare bits each belong above the nibbles of the
/// last four bytes, which are the other four scales (low) and minima (high).
fn eight_scales(packed: &[u8], scale: f32, minimum: f32) -> [(f32, f32); 8] {
    std::array::from_fn(|group| {
        let (s, m) = if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            let (above_s, above_m, nibbles) = (packed[group - 4] >> 6, packed[group] >> 6, packed[group + 4]);
            (above_s << 4 | nibbles & 15, above_m << 4 | nibbles >> 4)
        };
        (scale * f32::from(s), minimum * f32::from(m))
    })
}
