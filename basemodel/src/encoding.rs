//! How a tensor's numbers are stored, and how they become f32.
//!
//! The block formats are those of ggml. An f16 scale times the small integers of its block is exact in f32, so a weight is
//! rounded at most once, where a minimum is added or taken away, and equals the reference reader's bit for bit, whether
//! that one fuses or not.

mod block;
mod packed;
mod super_block;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

/// The stored form of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "users know the formats by these names, and errors show them")]
pub(crate) enum Encoding {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 32 signed bytes times a scale.
    Q8_0,
    /// 32 nibbles, less 8, times a scale.
    Q4_0,
    /// 32 nibbles times a scale, plus a minimum.
    Q4_1,
    /// 32 numbers of 5 bits, less 16, times a scale.
    Q5_0,
    /// 32 numbers of 5 bits times a scale, plus a minimum.
    Q5_1,
    /// 256 numbers of 2 bits; each 16 have a scale and a minimum of 4 bits.
    Q2_K,
    /// 256 numbers of 3 bits, less 4; each 16 have a scale of 6 bits.
    Q3_K,
    /// 256 nibbles; each 32 have a scale and a minimum of 6 bits.
    Q4_K,
    /// 256 numbers of 5 bits; each 32 have a scale and a minimum of 6 bits.
    Q5_K,
    /// 256 numbers of 6 bits, less 32; each 16 have a scale of 8 bits.
    Q6_K,
    /// Some form that Ballast does not read, by its name.
    Other(String),
}

impl Encoding {
    /// `(elements, bytes)` of the smallest unit; `None` for a form that is not read.
    pub(crate) fn block(&self) -> Option<(usize, usize)> {
        match self {
            Self::F32 => Some((1, 4)),
            Self::F16 | Self::Bf16 => Some((1, 2)),
            Self::Q8_0 => Some((block::WEIGHTS, block::Q8_0)),
            Self::Q4_0 => Some((block::WEIGHTS, block::Q4_0)),
            Self::Q4_1 => Some((block::WEIGHTS, block::Q4_1)),
            Self::Q5_0 => Some((block::WEIGHTS, block::Q5_0)),
            Self::Q5_1 => Some((block::WEIGHTS, block::Q5_1)),
            Self::Q2_K => Some((super_block::WEIGHTS, super_block::Q2_K)),
            Self::Q3_K => Some((super_block::WEIGHTS, super_block::Q3_K)),
            Self::Q4_K => Some((super_block::WEIGHTS, super_block::Q4_K)),
            Self::Q5_K => Some((super_block::WEIGHTS, super_block::Q5_K)),
            Self::Q6_K => Some((super_block::WEIGHTS, super_block::Q6_K)),
            Self::Other(_) => None,
        }
    }

    /// Bytes that so many elements take; `None` where they are no whole number of blocks, or too many.
    pub(crate) fn bytes(&self, elements: usize) -> Option<usize> {
        let (unit, bytes) = self.block()?;
        elements.is_multiple_of(unit).then_some(elements / unit)?.checked_mul(bytes)
    }

    /// Decodes `stored` into `out`; their lengths agree by [`Self::bytes`].
    pub(crate) fn decode(&self, stored: &[u8], out: &mut [f32]) {
        debug_assert_eq!(self.bytes(out.len()), Some(stored.len()));
        match self {
            Self::F32 => each::<4>(stored, out, f32::from_le_bytes),
            Self::F16 => each::<2>(stored, out, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => each::<2>(stored, out, |b| bf16::from_le_bytes(b).to_f32()),
            Self::Q8_0 => blocks(stored, out, block::q8_0),
            Self::Q4_0 => blocks(stored, out, block::q4_0),
            Self::Q4_1 => blocks(stored, out, block::q4_1),
            Self::Q5_0 => blocks(stored, out, block::q5_0),
            Self::Q5_1 => blocks(stored, out, block::q5_1),
            Self::Q2_K => blocks(stored, out, super_block::q2_k),
            Self::Q3_K => blocks(stored, out, super_block::q3_k),
            Self::Q4_K => blocks(stored, out, super_block::q4_k),
            Self::Q5_K => blocks(stored, out, super_block::q5_k),
            Self::Q6_K => blocks(stored, out, super_block::q6_k),
            // A form that is not read has no size, so nothing was asked for.
            Self::Other(_) => {}
        }
    }
}

fn each<const BYTES: usize>(stored: &[u8], out: &mut [f32], value: impl Fn([u8; BYTES]) -> f32) {
    for (bytes, x) in stored.as_chunks::<BYTES>().0.iter().zip(out) {
        *x = value(*bytes);
    }
}

fn blocks<const BYTES: usize, const WEIGHTS: usize>(
    stored: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) {
    for (bytes, block) in stored.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<WEIGHTS>().0) {
        decode(bytes, block);
    }
}
