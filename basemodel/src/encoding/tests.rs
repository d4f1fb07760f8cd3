//! Formats by hand, and against the reference reader (`tests/fixtures/make_block_format_fixture.py`).

use super::*;
use crate::gguf::Gguf;
use std::path::Path;

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
    assert_eq!(Encoding::Q6_K.bytes(128), None);
    assert_eq!(Encoding::Q6_K.bytes(512), Some(420));
    assert_eq!(Encoding::Other("IQ4_XS".into()).bytes(256), None);
    assert_eq!(Encoding::Q4_1.bytes(64), Some(40));
}

/// Random bits of every block format decode to the bits of the reference.
#[test]
fn block_formats_equal_the_reference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/block-formats.gguf");
    let file = std::fs::read(&path).unwrap();
    let tensors = Gguf::parse(&file, &path).unwrap().tensors;
    let mut formats = Vec::new();
    for (name, stored) in tensors.iter().filter(|(name, _)| !name.ends_with(".f32")) {
        assert_eq!(format!("{:?}", stored.encoding), *name);
        let golden = &tensors[&format!("{name}.f32")];
        assert_eq!(golden.shape, stored.shape);
        let elements = stored.shape.iter().product();
        let expected = decode(&Encoding::F32, &file[golden.range.clone()], elements);
        let decoded = decode(&stored.encoding, &file[stored.range.clone()], elements);
        let differs = decoded.iter().zip(&expected).position(|(x, y)| x.to_bits() != y.to_bits());
        assert_eq!(differs, None, "{name}: {:?}", differs.map(|i| (decoded[i], expected[i])));
        formats.push(name.as_str());
    }
    assert_eq!(formats, ["Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"]);
}
