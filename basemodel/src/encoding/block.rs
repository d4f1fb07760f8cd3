//! ggml's simple formats: 32 weights share one f16 scale and, in the formats whose name ends in 1, one f16 minimum.

use super::packed::{half, unpack};

/// Weights of a block.
pub(super) const WEIGHTS: usize = 32;

/// Bytes of a block: the scale, the bytes.
pub(super) const Q8_0: usize = 2 + WEIGHTS;
/// Bytes of a block: the scale, the nibbles.
pub(super) const Q4_0: usize = 2 + WEIGHTS / 2;
/// Bytes of a block: scale, minimum, nibbles.
pub(super) const Q4_1: usize = 4 + WEIGHTS / 2;
/// Bytes of a block: scale, fifth bits, nibbles.
pub(super) const Q5_0: usize = 2 + WEIGHTS / 8 + WEIGHTS / 2;
/// Bytes of a block: scale, minimum, fifth bits, nibbles.
pub(super) const Q5_1: usize = 4 + WEIGHTS / 8 + WEIGHTS / 2;

pub(super) fn q8_0(bytes: &[u8; Q8_0], out: &mut [f32; WEIGHTS]) {
    let scale = half(bytes, 0);
    for (x, &q) in out.iter_mut().zip(&bytes[2..]) {
        *x = scale * f32::from(q.cast_signed());
    }
}

pub(super) fn q4_0(bytes: &[u8; Q4_0], out: &mut [f32; WEIGHTS]) {
    let scale = half(bytes, 0);
    each(out, nibbles(&bytes[2..]), |q| scale * (f32::from(q) - 8.0));
}

pub(super) fn q4_1(bytes: &[u8; Q4_1], out: &mut [f32; WEIGHTS]) {
    let (scale, minimum) = (half(bytes, 0), half(bytes, 2));
    each(out, nibbles(&bytes[4..]), |q| scale * f32::from(q) + minimum);
}

pub(super) fn q5_0(bytes: &[u8; Q5_0], out: &mut [f32; WEIGHTS]) {
    let scale = half(bytes, 0);
    each(out, five_bits(&bytes[2..]), |q| scale * (f32::from(q) - 16.0));
}

pub(super) fn q5_1(bytes: &[u8; Q5_1], out: &mut [f32; WEIGHTS]) {
    let (scale, minimum) = (half(bytes, 0), half(bytes, 2));
    each(out, five_bits(&bytes[4..]), |q| scale * f32::from(q) + minimum);
}

fn each(out: &mut [f32; WEIGHTS], quants: [u8; WEIGHTS], value: impl Fn(u8) -> f32) {
    for (x, q) in out.iter_mut().zip(quants) {
        *x = value(q);
    }
}

/// The low nibbles are the first half of the block, the high nibbles the second.
fn nibbles(packed: &[u8]) -> [u8; WEIGHTS] {
    unpack::<4, 16, WEIGHTS>(packed)
}

/// The highest bits, which unlike the nibbles below them are in the order of the weights, then the nibbles.
fn five_bits(packed: &[u8]) -> [u8; WEIGHTS] {
    let (fifth, low) = packed.split_at(WEIGHTS / 8);
    let mut quants = nibbles(low);
    for (quants, fifth) in quants.as_chunks_mut::<8>().0.iter_mut().zip(fifth) {
        for (bit, q) in quants.iter_mut().enumerate() {
            *q |= (fifth >> bit & 1) << 4;
        }
    }
    quants
}
