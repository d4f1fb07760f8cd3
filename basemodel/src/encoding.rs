//! How a tensor's numbers are stored, and how they become f32.
//!
//! The block formats are those of ggml: 32 weights share one f16 scale (and, in `Q4_1`, one f16 minimum). Products and
//! sums are taken in f32 without fusing, so that the result equals the reference reader's bit for bit.

use half::{bf16, f16};

/// Weights of one block of a quantized format.
const BLOCK: usize = 32;

/// The stored form of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Some form that Ballast does not read, by its name.
    Other(String),
}

impl Encoding {
    /// `(elements, bytes)` of the smallest unit; `None` for a form that is not read.
    pub(crate) fn block(&self) -> Option<(usize, usize)> {
        match self {
            Self::F32 => Some((1, 4)),
            Self::F16 | Self::Bf16 => Some((1, 2)),
            Self::Q8_0 => Some((BLOCK, 2 + BLOCK)),
            Self::Q4_0 => Some((BLOCK, 2 + BLOCK / 2)),
            Self::Q4_1 => Some((BLOCK, 4 + BLOCK / 2)),
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
            Self::Q8_0 => blocks::<34>(stored, out, q8_0),
            Self::Q4_0 => blocks::<18>(stored, out, q4_0),
            Self::Q4_1 => blocks::<20>(stored, out, q4_1),
            // A form that is not read has no size, so nothing was asked for.
            Self::Other(_) => {}
        }
    }
}

fn each<const N: usize>(stored: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (bytes, x) in stored.as_chunks::<N>().0.iter().zip(out) {
        *x = value(*bytes);
    }
}

fn blocks<const N: usize>(stored: &[u8], out: &mut [f32], decode: impl Fn(&[u8; N], &mut [f32; BLOCK])) {
    for (bytes, block) in stored.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        decode(bytes, block);
    }
}

fn q8_0(bytes: &[u8; 34], out: &mut [f32; BLOCK]) {
    let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    for (x, &q) in out.iter_mut().zip(&bytes[2..]) {
        *x = scale * f32::from(q.cast_signed());
    }
}

fn q4_0(bytes: &[u8; 18], out: &mut [f32; BLOCK]) {
    let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    nibbles(&bytes[2..], out, |q| scale * (f32::from(q) - 8.0));
}

fn q4_1(bytes: &[u8; 20], out: &mut [f32; BLOCK]) {
    let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let minimum = f16::from_le_bytes([bytes[2], bytes[3]]).to_f32();
    nibbles(&bytes[4..], out, |q| scale * f32::from(q) + minimum);
}

/// The low nibbles of the 16 bytes are the first half of the block, the high nibbles the second.
fn nibbles(bytes: &[u8], out: &mut [f32; BLOCK], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((&byte, l), h) in bytes.iter().zip(low).zip(high) {
        *l = value(byte & 0x0f);
        *h = value(byte >> 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(encoding: &Encoding, stored: &[u8], elements: usize) -> Vec<f32> {
        assert_eq!(encoding.bytes(elements), Some(stored.len()));
        let mut out = vec![f32::NAN; elements];
        encoding.decode(stored, &mut out);
        out
    }

    #[test]
    fn plain_formats_are_little_endian() {
        assert_eq!(decode(&Encoding::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0], 2), [1.0, -2.5]);
        assert_eq!(decode(&Encoding::F16, &[0x00, 0x3c, 0x01, 0x00], 2), [1.0, 2f32.powi(-24)]);
        assert_eq!(decode(&Encoding::Bf16, &[0x80, 0x3f, 0x20, 0xc0], 2), [1.0, -2.5]);
    }

    #[test]
    fn q8_0_by_hand() {
        // Scale 0.5 (f16 0x3800), then -16, -15, ..., 15.
        let mut stored = vec![0x00, 0x38];
        stored.extend((-16i8..16).map(i8::cast_unsigned));
        let expected: Vec<f32> = (-16..16).map(|q| 0.5 * q as f32).collect();
        assert_eq!(decode(&Encoding::Q8_0, &stored, 32), expected);
    }

    #[test]
    fn q4_0_by_hand() {
        // Scale 2 (f16 0x4000); byte j holds j below and 15 - j above.
        let mut stored = vec![0x00, 0x40];
        stored.extend((0..16u8).map(|j| j | (15 - j) << 4));
        let low = (0..16).map(|j| 2.0 * (j as f32 - 8.0));
        let high = (0..16).map(|j| 2.0 * (7.0 - j as f32));
        assert_eq!(decode(&Encoding::Q4_0, &stored, 32), low.chain(high).collect::<Vec<_>>());
    }

    #[test]
    fn q4_1_by_hand() {
        // Scale 0.25 (f16 0x3400), minimum -1 (f16 0xbc00); two blocks, the second all zero.
        let mut stored = vec![0x00, 0x34, 0x00, 0xbc];
        stored.extend((0..16u8).map(|j| j | 3 << 4));
        stored.extend([0; 20]);
        let low = (0..16).map(|j| 0.25 * j as f32 - 1.0);
        let expected: Vec<f32> = low.chain([-0.25; 16]).chain([0.0; 32]).collect();
        assert_eq!(decode(&Encoding::Q4_1, &stored, 64), expected);
    }

    #[test]
    fn sizes_are_whole_blocks() {
        assert_eq!(Encoding::Q4_0.bytes(48), None);
        assert_eq!(Encoding::F32.bytes(usize::MAX), None);
        assert_eq!(Encoding::Other("Q6_K".into()).bytes(256), None);
        assert_eq!(Encoding::Q4_1.bytes(64), Some(40));
    }
}
