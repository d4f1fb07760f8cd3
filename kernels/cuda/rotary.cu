// Rotary position embedding (Su et al., "RoFormer", 2104.09864), in place: each head's elements i and i + half turn by
// the angle of (position, i). The tables of cos and sin come from the host, computed there in f64.
//
// Bound by memory; reads and writes each element once, and of the tables 2 * half values a row; 3 operations an
// element.
#include "common.cuh"

constexpr u32 THREADS = 256;

// A warp a row. Its lanes form 2^(5 - bits) sections of 2^bits lanes; a section does one head at a time, a lane the
// same elements of every head, so that it keeps their cos and sin in registers.
template <typename T, u32 N>
__device__ __forceinline__ void rotate_row(T *row, const float *cos, const float *sin, float sign, u32 heads, u32 half,
                                           u32 bits) {
    const u32 lane = threadIdx.x % WARP, section = lane >> bits, sections = WARP >> bits;
    for (u32 i = (lane - (section << bits)) * N; i < half; i += N << bits) {
        const Pack<N> c = load<N>(cos + i);
        Pack<N> s = load<N>(sin + i);
#pragma unroll
        for (u32 k = 0; k < N; ++k) s.value[k] *= sign;
        for (u32 head = section; head < heads; head += sections) {
            T *low = row + u64(head) * 2 * half + i, *high = low + half;
            Pack<N> a = load<N>(low), b = load<N>(high);
#pragma unroll
            for (u32 k = 0; k < N; ++k) {
                const float x = a.value[k], y = b.value[k];
                a.value[k] = x * c.value[k] - y * s.value[k];
                b.value[k] = y * c.value[k] + x * s.value[k];
            }
            store(low, a);
            store(high, b);
        }
    }
}

// `sign` is 1, or -1 to turn back, which is the gradient. Packs of 4 elements, as the tables are f32: their accesses
// are then as dense as those of x.
template <typename T>
__device__ __forceinline__ void rotary(T *x, const float *cos, const float *sin, const u32 *positions, float sign,
                                       u32 rows, u32 heads, u32 half, u32 bits) {
    const u32 row = (blockIdx.x * THREADS + threadIdx.x) / WARP;
    if (row >= rows) return;
    const u64 angles = u64(positions[row]) * half;
    x += u64(row) * heads * 2 * half;
    if (half % 4 == 0) {
        rotate_row<T, 4>(x, cos + angles, sin + angles, sign, heads, half, bits);
    } else {
        rotate_row<T, 1>(x, cos + angles, sin + angles, sign, heads, half, bits);
    }
}

#define KERNELS(T, SUFFIX)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) rotary##SUFFIX(                                             \
        T *x, const float *cos, const float *sin, const u32 *positions, float sign, u32 rows, u32 heads, u32 half,    \
        u32 bits) {                                                                                                   \
        rotary(x, cos, sin, positions, sign, rows, heads, half, bits);                                                \
    }

FOR_EACH_STORAGE(KERNELS)
