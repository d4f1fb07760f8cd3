//! A cursor over the header of a GGUF file. Every length is checked against the bytes that are left.

use super::metadata::{Array, Value};

/// Longest metadata key that the format allows.
const MAX_KEY: usize = 65_535;
/// Longest tensor name that is believed (ggml itself stops at 64).
const MAX_NAME: usize = 256;

/// Reads little-endian values one after the other. Errors say what is wrong and at which byte.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Bytes not yet read.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let taken = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken
            .ok_or_else(|| format!("ends early: {length} bytes wanted at byte {}, {} left", self.at, self.left()))?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| format!("ends early at byte {at}"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length, checked to be at most `left / unit` before anyone allocates by it.
    fn count(&mut self, unit: usize, what: &str) -> Result<usize, String> {
        let (at, count) = (self.at, self.u64()?);
        let fits = usize::try_from(count).ok().filter(|n| n.checked_mul(unit).is_some_and(|b| b <= self.left()));
        fits.ok_or_else(|| format!("claims {count} {what} at byte {at}, but only {} bytes are left", self.left()))
    }

    fn string(&mut self, limit: usize, what: &str) -> Result<String, String> {
        let at = self.at;
        let length = self.count(1, &format!("bytes of {what}"))?;
        if length > limit {
            return Err(format!("has a {what} of {length} bytes at byte {at}; at most {limit} are allowed"));
        }
        let text = std::str::from_utf8(self.take(length)?)
            .map_err(|_| format!("has a {what} at byte {at} that is not UTF-8"))?;
        Ok(text.to_owned())
    }

    pub(super) fn key(&mut self) -> Result<String, String> {
        self.string(MAX_KEY, "key")
    }

    pub(super) fn tensor_name(&mut self) -> Result<String, String> {
        self.string(MAX_NAME, "tensor name")
    }

    /// One metadata value with its type before it.
    pub(super) fn value(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.bool()?),
            8 => Value::String(self.string(usize::MAX, "string")?),
            9 => Value::Array(self.value_array()?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("has a value of unknown type {other} before byte {}", self.at)),
        })
    }

    fn bool(&mut self) -> Result<bool, String> {
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("has the boolean {other} at byte {}", self.at - 1)),
        }
    }

    fn value_array(&mut self) -> Result<Array, String> {
        let kind = self.u32()?;
        let unit = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(format!("has an array of arrays before byte {}", self.at)),
            other => return Err(format!("has an array of unknown type {other} before byte {}", self.at)),
        };
        let count = self.count(unit, "array elements")?;
        Ok(match kind {
            8 => Array::Strings((0..count).map(|_| self.string(usize::MAX, "string")).collect::<Result<_, _>>()?),
            5 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            _ => {
                // No array of another type means anything to Ballast.
                self.take(count * unit)?;
                Array::Other
            }
        })
    }

    fn numbers<T>(&mut self, count: usize, from: impl Fn([u8; 4]) -> T) -> Result<Vec<T>, String> {
        Ok(self.take(count * 4)?.as_chunks().0.iter().map(|b| from(*b)).collect())
    }
}
