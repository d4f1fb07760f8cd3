//! The numbers that frames carry, little-endian.

/// A number of fixed size.
pub(super) trait Element: Copy {
    /// Bytes of one.
    const BYTES: usize;

    /// Reads one from as many bytes.
    fn read(bytes: &[u8]) -> Self;

    /// Writes one to as many bytes.
    fn write(self, bytes: &mut [u8]);
}

macro_rules! element {
    ($($number:ty),*) => {$(
        impl Element for $number {
            const BYTES: usize = size_of::<Self>();

            fn read(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<Self>()];
                raw.copy_from_slice(bytes);
                Self::from_le_bytes(raw)
            }

            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

element!(i64, f32);

pub(super) fn encode<E: Element>(values: &[E], bytes: &mut [u8]) {
    for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(E::BYTES)) {
        value.write(bytes);
    }
}

pub(super) fn decode<E: Element>(values: &mut [E], bytes: &[u8]) {
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(E::BYTES)) {
        *value = E::read(bytes);
    }
}

/// Combines what arrived with what is here; the result goes to both.
pub(super) fn combine<E: Element>(values: &mut [E], bytes: &mut [u8], op: impl Fn(E, E) -> E) {
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact_mut(E::BYTES)) {
        *value = op(*value, E::read(bytes));
        value.write(bytes);
    }
}
