//! Combining the operands of all ranks, in the order of the ranks.
//!
//! Integers wrap. Floats are rounded to their type after each rank, as a ring does; a real ring starts at another rank
//! for each chunk, so float sums of more than two ranks may differ from NCCL's in the last bits.

use half::bf16;

use crate::abi::{DataType, Reduction};

/// Combines operands of equal length; `None` if the type cannot be reduced here.
pub(crate) fn reduce(operands: &[Vec<u8>], data: DataType, reduction: Reduction) -> Option<Vec<u8>> {
    macro_rules! fold {
        ($type:ty, $add:expr, $max:expr, $min:expr) => {{
            let combine: fn($type, $type) -> $type = match reduction {
                Reduction::Sum => $add,
                Reduction::Max => $max,
                Reduction::Min => $min,
            };
            fold(operands, <$type>::from_le_bytes, <$type>::to_le_bytes, combine)
        }};
    }
    macro_rules! integers {
        ($type:ty) => {
            fold!($type, <$type>::wrapping_add, <$type>::max, <$type>::min)
        };
    }
    Some(match data {
        DataType::I8 => integers!(i8),
        DataType::U8 => integers!(u8),
        DataType::I32 => integers!(i32),
        DataType::U32 => integers!(u32),
        DataType::I64 => integers!(i64),
        DataType::U64 => integers!(u64),
        DataType::F32 => fold!(f32, |a, b| a + b, f32::max, f32::min),
        DataType::F64 => fold!(f64, |a, b| a + b, f64::max, f64::min),
        DataType::Bf16 => fold!(bf16, |a, b| a + b, bf16::max, bf16::min),
        DataType::F16 => return None,
    })
}

fn fold<T, const N: usize>(
    operands: &[Vec<u8>],
    read: fn([u8; N]) -> T,
    write: fn(T) -> [u8; N],
    combine: fn(T, T) -> T,
) -> Vec<u8> {
    let mut operands = operands.iter();
    let mut sums = operands.next().cloned().unwrap_or_default();
    for operand in operands {
        for (sum, &other) in sums.as_chunks_mut::<N>().0.iter_mut().zip(operand.as_chunks::<N>().0) {
            *sum = write(combine(read(*sum), read(other)));
        }
    }
    sums
}
