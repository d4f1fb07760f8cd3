//! Parameters and grids of kernel launches.

use super::buffers::{HalfVector, IndexVector, IntegerVector, Matrix, Vector};
use super::memory::Buffer;

/// One kernel parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Arg {
    /// A device address.
    Ptr(u64),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    F64(f64),
}

impl Arg {
    /// The address of no operand.
    pub(super) const NULL: Self = Self::Ptr(0);

    /// The value in the low bytes of a word.
    pub(super) fn bits(self) -> u64 {
        match self {
            Self::Ptr(value) | Self::U64(value) => value,
            Self::U32(value) => value.into(),
            Self::I32(value) => u64::from(value as u32),
            Self::F32(value) => value.to_bits().into(),
            Self::F64(value) => value.to_bits(),
        }
    }
}

macro_rules! arg_from {
    ($($type:ty => |$value:ident| $arg:expr;)*) => {$(
        impl From<$type> for Arg {
            fn from($value: $type) -> Self {
                $arg
            }
        }
    )*};
}

arg_from! {
    u32 => |value| Self::U32(value);
    i32 => |value| Self::I32(value);
    u64 => |value| Self::U64(value);
    f32 => |value| Self::F32(value);
    f64 => |value| Self::F64(value);
    &Buffer => |buffer| Self::Ptr(buffer.ptr());
    &Matrix => |matrix| Self::Ptr(matrix.buffer.ptr());
    &mut Matrix => |matrix| Self::Ptr(matrix.buffer.ptr());
    &Vector => |vector| Self::Ptr(vector.buffer.ptr());
    &mut Vector => |vector| Self::Ptr(vector.buffer.ptr());
    &HalfVector => |vector| Self::Ptr(vector.buffer.ptr());
    &mut HalfVector => |vector| Self::Ptr(vector.buffer.ptr());
    &IntegerVector => |vector| Self::Ptr(vector.buffer.ptr());
    &mut IntegerVector => |vector| Self::Ptr(vector.buffer.ptr());
    &IndexVector => |vector| Self::Ptr(vector.buffer.ptr());
}

impl<T> From<Option<T>> for Arg
where
    Self: From<T>,
{
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::NULL, Self::from)
    }
}

/// Blocks of a launch, threads a block, and dynamic shared memory a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) blocks: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
}

impl Grid {
    /// A block a row.
    pub(super) fn rows(rows: usize, threads: u32) -> Self {
        Self { blocks: [rows as u32, 1, 1], threads, shared_bytes: 0 }
    }

    /// A thread an element.
    pub(super) fn elements(elements: usize, threads: u32) -> Self {
        Self::rows(elements.div_ceil(threads as usize), threads)
    }

    /// The same with dynamic shared memory.
    pub(super) fn shared(self, shared_bytes: u32) -> Self {
        Self { shared_bytes, ..self }
    }
}
