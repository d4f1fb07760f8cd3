// What every kernel file shares: storage types, 16-byte accesses, reductions in a fixed order, dropout masks.
//
// A kernel is written once as a template over the storage type `T` of activations (`float` or `bf16`), computes in f32
// and rounds each output once. FOR_EACH_STORAGE makes its two entry points.
#pragma once

#include <cuda_bf16.h>

using bf16 = __nv_bfloat16;
using u32 = unsigned;
using u64 = unsigned long long;

// Defines the entry points of a file: KERNEL(T, SUFFIX) with T = float, SUFFIX = _f32 and T = bf16, SUFFIX = _bf16.
#define FOR_EACH_STORAGE(KERNEL)                                                                                      \
    KERNEL(float, _f32)                                                                                               \
    KERNEL(bf16, _bf16)

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

constexpr __host__ __device__ u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// ---- storage -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }

// Rounds to nearest, ties to even.
template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }

// Elements of T in one 16-byte access, the widest that a thread can make.
template <typename T> constexpr u32 WIDTH = 16 / sizeof(T);

// `N` consecutive elements, widened, moved by one access: N is WIDTH<T>, or 4 where f32 tables go with the elements, or
// 1 where rows are ragged. The address must be a multiple of the access.
template <u32 N> struct Pack {
    float value[N];
};

__device__ __forceinline__ void load(const float *from, Pack<1> &pack) { pack.value[0] = *from; }
__device__ __forceinline__ void load(const bf16 *from, Pack<1> &pack) { pack.value[0] = widen(*from); }

__device__ __forceinline__ void load(const float *from, Pack<4> &pack) {
    const float4 raw = *reinterpret_cast<const float4 *>(from);
    pack = {{raw.x, raw.y, raw.z, raw.w}};
}

// A bf16 is the upper half of an f32.
__device__ __forceinline__ float low_half(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ void load(const bf16 *from, Pack<4> &pack) {
    const uint2 raw = *reinterpret_cast<const uint2 *>(from);
    pack = {{low_half(raw.x), high_half(raw.x), low_half(raw.y), high_half(raw.y)}};
}

__device__ __forceinline__ void load(const bf16 *from, Pack<8> &pack) {
    const uint4 raw = *reinterpret_cast<const uint4 *>(from);
    pack = {{low_half(raw.x), high_half(raw.x), low_half(raw.y), high_half(raw.y), low_half(raw.z), high_half(raw.z),
             low_half(raw.w), high_half(raw.w)}};
}

template <u32 N, typename T> __device__ __forceinline__ Pack<N> load(const T *from) {
    Pack<N> pack;
    load(from, pack);
    return pack;
}

__device__ __forceinline__ void store(float *to, const Pack<1> &pack) { *to = pack.value[0]; }
__device__ __forceinline__ void store(bf16 *to, const Pack<1> &pack) { *to = narrow<bf16>(pack.value[0]); }

__device__ __forceinline__ void store(float *to, const Pack<4> &pack) {
    *reinterpret_cast<float4 *>(to) = make_float4(pack.value[0], pack.value[1], pack.value[2], pack.value[3]);
}

// Two f32 rounded to a pair of bf16, the first in the lower half.
__device__ __forceinline__ u32 narrow_pair(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const u32 *>(&pair);
}

__device__ __forceinline__ void store(bf16 *to, const Pack<4> &pack) {
    const float *v = pack.value;
    *reinterpret_cast<uint2 *>(to) = make_uint2(narrow_pair(v[0], v[1]), narrow_pair(v[2], v[3]));
}

__device__ __forceinline__ void store(bf16 *to, const Pack<8> &pack) {
    const float *v = pack.value;
    *reinterpret_cast<uint4 *>(to) = make_uint4(narrow_pair(v[0], v[1]), narrow_pair(v[2], v[3]),
                                                narrow_pair(v[4], v[5]), narrow_pair(v[6], v[7]));
}

// What `store` would leave in memory, widened again: for values that are used after they are stored.
template <typename T, u32 N> __device__ __forceinline__ Pack<N> rounded(Pack<N> pack) {
#pragma unroll
    for (u32 i = 0; i < N; ++i) pack.value[i] = widen(narrow<T>(pack.value[i]));
    return pack;
}

// ---- reductions ----------------------------------------------------------------------------------------------------
//
// Sums are taken in an order that depends on the block size alone, and every thread gets the same bits: a butterfly
// within the warp (a + b and b + a are the same), then the warps from first to last.

struct Sum {
    template <typename V> __device__ __forceinline__ V operator()(V a, V b) const { return a + b; }
};

// The larger; NaN when either is NaN (`fmaxf` would hide it).
struct Max {
    template <typename V> __device__ __forceinline__ V operator()(V a, V b) const { return a > b || a != a ? a : b; }
};

// Over teams of `lanes` neighbouring lanes (a power of two, at most 32; the same in the whole warp).
template <typename V, typename Op> __device__ __forceinline__ V lanes_reduce(V value, u32 lanes, Op op) {
    for (u32 offset = lanes / 2; offset > 0; offset /= 2) {
        value = op(value, __shfl_xor_sync(ALL_LANES, value, offset));
    }
    return value;
}

template <typename V, typename Op> __device__ __forceinline__ V warp_reduce(V value, Op op) {
#pragma unroll
    for (u32 offset = WARP / 2; offset > 0; offset /= 2) {
        value = op(value, __shfl_xor_sync(ALL_LANES, value, offset));
    }
    return value;
}

// Over a block of THREADS threads, a multiple of 32; all of them call.
template <u32 THREADS, typename V, typename Op> __device__ __forceinline__ V block_reduce(V value, Op op) {
    __shared__ V partial[THREADS / WARP];
    value = warp_reduce(value, op);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = value;
    __syncthreads();
    value = partial[0];
#pragma unroll
    for (u32 warp = 1; warp < THREADS / WARP; ++warp) value = op(value, partial[warp]);
    __syncthreads(); // The next call writes `partial` again.
    return value;
}

template <typename V> __device__ __forceinline__ V warp_sum(V value) { return warp_reduce(value, Sum()); }
template <typename V> __device__ __forceinline__ V warp_max(V value) { return warp_reduce(value, Max()); }
template <u32 THREADS, typename V> __device__ __forceinline__ V block_sum(V value) {
    return block_reduce<THREADS>(value, Sum());
}
template <u32 THREADS, typename V> __device__ __forceinline__ V block_max(V value) {
    return block_reduce<THREADS>(value, Max());
}

// ---- dropout -------------------------------------------------------------------------------------------------------

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four random words from a
// counter and a key, as in kernels/src/philox.rs.
__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
    constexpr u32 MULTIPLIER_0 = 0xD2511F53u, MULTIPLIER_1 = 0xCD9E8D57u;
    constexpr u32 WEYL_0 = 0x9E3779B9u, WEYL_1 = 0xBB67AE85u;
#pragma unroll
    for (u32 round = 0; round < 10; ++round) {
        const u32 high_0 = __umulhi(MULTIPLIER_0, counter.x), low_0 = MULTIPLIER_0 * counter.x;
        const u32 high_1 = __umulhi(MULTIPLIER_1, counter.z), low_1 = MULTIPLIER_1 * counter.z;
        counter = make_uint4(high_1 ^ counter.y ^ key.x, low_1, high_0 ^ counter.w ^ key.y, low_0);
        key = make_uint2(key.x + WEYL_0, key.y + WEYL_1);
    }
    return counter;
}

// One layer's dropout: a pure function of (seed, step, sample, module, position, channel), so that the mask is made
// where it is needed and never stored. A kernel fills it from its scalar parameters.
struct Dropout {
    uint2 key;            // (seed ^ (seed >> 32), step), the low 32 bits of each.
    u32 threshold;        // ceil(probability * 2^32): words below are dropped.
    float scale;          // 1 / (1 - probability): the factor on what is kept.
    u32 module;           // Number of the adapted layer.
    const u32 *positions; // Of each row.
    const u32 *sequence;  // Of each row.
    const u32 *samples;   // Of each sequence.

    // Who a row is: its position and its sample.
    __device__ __forceinline__ uint2 row(u32 number) const {
        return make_uint2(positions[number], samples[sequence[number]]);
    }

    // The factors, 0 or `scale`, of channels 4 * quad .. 4 * quad + 4 of a row. A dropped channel is zero even where it
    // held NaN: select by the factor, do not multiply.
    __device__ __forceinline__ float4 factors(uint2 row, u32 quad) const {
        const uint4 word = philox(make_uint4(quad, row.x, row.y, module), key);
        return make_float4(word.x >= threshold ? scale : 0.0f, word.y >= threshold ? scale : 0.0f,
                           word.z >= threshold ? scale : 0.0f, word.w >= threshold ? scale : 0.0f);
    }
};

__device__ __forceinline__ float drop(float x, float factor) { return factor == 0.0f ? 0.0f : x * factor; }
