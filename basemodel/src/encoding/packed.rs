//! Numbers of fewer than eight bits as ggml packs them, and the halves beside them.

use half::f16;

/// Numbers of `BITS` bits, lowest bits first. A run of `RUN` bytes holds as many runs of `RUN` numbers as a byte holds
/// numbers: the first run is in the lowest bits of all its bytes, the next in the bits above.
pub(super) fn unpack<const BITS: usize, const RUN: usize, const COUNT: usize>(packed: &[u8]) -> [u8; COUNT] {
    let mut numbers = [0; COUNT];
    let per_byte = 8 / BITS;
    let runs = numbers.as_chunks_mut::<RUN>().0.chunks_exact_mut(per_byte);
    for (bytes, runs) in packed.as_chunks::<RUN>().0.iter().zip(runs) {
        for (place, run) in runs.iter_mut().enumerate() {
            for (number, byte) in run.iter_mut().zip(bytes) {
                *number = byte >> (BITS * place) & ((1 << BITS) - 1);
            }
        }
    }
    numbers
}

/// The IEEE half at `at`, widened.
pub(super) fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
