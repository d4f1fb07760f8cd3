//! Element types: how they lie in memory and what they are as f32.

use half::{bf16, f16};

use crate::abi::Refusal;

/// Type of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
}

impl Kind {
    /// The type of a `cudaDataType_t`.
    pub(crate) fn from_code(code: u32) -> Result<Self, Refusal> {
        match code {
            0 => Ok(Self::F32),
            2 => Ok(Self::F16),
            14 => Ok(Self::Bf16),
            _ => Err(Refusal::NotSupported),
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A type that products read and write.
pub(crate) trait Element: Copy {
    fn widen(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn round(value: f32) -> Self;
}

impl Element for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn round(value: f32) -> Self {
        value
    }
}

impl Element for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// Calls a function generic over [`Element`] with the type that a [`Kind`] means.
macro_rules! with_element {
    ($kind:expr, $function:ident $(::<_, $more:tt>)? ($($argument:expr),* $(,)?)) => {
        match $kind {
            $crate::elements::Kind::F32 => $function::<f32 $(, $more)?>($($argument),*),
            $crate::elements::Kind::F16 => $function::<half::f16 $(, $more)?>($($argument),*),
            $crate::elements::Kind::Bf16 => $function::<half::bf16 $(, $more)?>($($argument),*),
        }
    };
}
pub(crate) use with_element;
