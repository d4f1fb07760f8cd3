//! Elementwise loops, compiled for several instruction sets and picked at run time.
//!
//! Rust neither reorders nor contracts floating-point operations, and sums run over explicit lanes, so every version
//! of a loop gives the same bits.

use half::bf16;

/// Lanes of a sum. One AVX-512 register; wider than needed elsewhere, which costs nothing.
pub(crate) const LANES: usize = 16;

/// The f32 of the same value.
#[inline(always)]
pub(crate) fn wide(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// Adds lanes pairwise: a fixed tree.
#[inline(always)]
pub(crate) fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Defines a function compiled for AVX-512, for AVX2 and for the baseline, with the choice made at run time.
/// Tests reach the baseline version as `name::baseline`.
macro_rules! vectorized {
    ($($(#[$attr:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$attr])*
        #[multiversion::multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl+avx2",
            "x86_64+avx2",
        ))]
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? $body

        #[cfg(test)]
        pub(crate) mod $name {
            #[allow(unused_imports)]
            use super::*;
            #[allow(dead_code, clippy::too_many_arguments)]
            pub(crate) fn baseline($($arg: $ty),*) $(-> $ret)? $body
        }
    )*};
}
pub(crate) use vectorized;

vectorized! {
    /// Inner product, by lanes.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0.0; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                lanes[lane] += a[lane] * b[lane];
            }
        }
        for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
            *lane += a * b;
        }
        add_lanes(lanes)
    }

    /// The same with `b` in bf16: the bits are those of its values as f32.
    fn widened_dot(a: &[f32], b: &[bf16]) -> f32 {
        let mut lanes = [0.0; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                lanes[lane] += a[lane] * wide(b[lane]);
            }
        }
        for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
            *lane += a * wide(*b);
        }
        add_lanes(lanes)
    }
}
