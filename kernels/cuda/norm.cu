// RMSNorm (Zhang and Sennrich, 1910.07467), fused with the residual add before it, forward and backward.
//
//   forward   x += delta; inv_rms = 1 / sqrt(mean(x^2) + eps); out = x * inv_rms * w
//   backward  g = d_out * w; d_x (+)= inv_rms * (g - x * inv_rms^2 * mean(g * x))
//
// Both run over groups of consecutive elements (a row, or a head of a row), a team a group. Bound by memory: forward
// reads x and delta, writes x and out (out alone and no delta: 1 read, 1 write); backward reads d_out and x, writes d_x
// (and reads it to add); about 6 operations an element. A group waits in shared memory for its norm, so each byte moves
// once; the weights are read once a block, which does GROUPS_A_TEAM groups a team.
#include "team.cuh"

constexpr u32 GROUPS_A_TEAM = 8;

// Shared memory of a block, as kernels/src/cuda/norm.rs sizes it: the weights and WEIGHTS_PADDING, in f32, then one or
// two arrays of storage, each with a stretch of a group for every team.
extern __shared__ uint4 shared_memory[];
constexpr u32 WEIGHTS_PADDING = 64;

// w for every element of a group. Packs of 8 are held as two planes of 4, so that a warp's 16-byte accesses are
// consecutive; the planes lie half the 32 banks apart, so that filling them hits no bank twice either.
template <u32 N> struct Weights {
    static constexpr u32 PLANE = N < 4 ? 1 : 4;
    float *values;
    u32 stride; // Of the planes.

    __device__ __forceinline__ Weights(const float *weight, float offset, u32 group)
        : values(reinterpret_cast<float *>(shared_memory)), stride((group / 2 + 15) / 32 * 32 + 16) {
        for (u32 i = threadIdx.x; i < group; i += TEAM_THREADS) {
            values[i % N / PLANE * stride + i / N * PLANE + i % PLANE] = offset + weight[i];
        }
        __syncthreads();
    }

    __device__ __forceinline__ Pack<N> operator[](u32 i) const {
        Pack<N> pack;
#pragma unroll
        for (u32 k = 0; k < N; k += PLANE) {
            const Pack<PLANE> part = load<PLANE>(values + k / PLANE * stride + i / N * PLANE);
#pragma unroll
            for (u32 j = 0; j < PLANE; ++j) pack.value[k + j] = part.value[j];
        }
        return pack;
    }
};

// The team's stretch of an array of shared memory: 0, or 1 for the second.
template <typename T> __device__ __forceinline__ T *stretch(const Team &team, u32 group, u32 array) {
    T *first = reinterpret_cast<T *>(reinterpret_cast<float *>(shared_memory) + group + WEIGHTS_PADDING);
    return first + u64(array * team.in_block + team.index) * group;
}

template <u32 N> __device__ __forceinline__ float dot(const Pack<N> &a, const Pack<N> &b) {
    float sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < N; ++k) sum += a.value[k] * b.value[k];
    return sum;
}

// Adds delta (unless null), keeps the sum in `staged`, and returns this thread's share of its squares.
template <typename T, u32 N>
__device__ __forceinline__ float add_and_stage(T *x, const T *delta, T *staged, u32 group, const Team &team) {
    float squares = 0.0f;
    for (u32 i = team.lane * N; i < group; i += team.size * N) {
        Pack<N> sum = load<N>(x + i);
        if (delta) {
            const Pack<N> addend = load<N>(delta + i);
#pragma unroll
            for (u32 k = 0; k < N; ++k) sum.value[k] += addend.value[k];
            sum = rounded<T>(sum);
            store(x + i, sum);
        }
        store(staged + i, sum);
        squares += dot(sum, sum);
    }
    return squares;
}

template <typename T, u32 N>
__device__ __forceinline__ void forward(T *x, const T *delta, const float *weight, float offset, float eps, T *out,
                                        float *inv_rms, u32 groups, u32 group, u32 bits) {
    const Team team(bits);
    const Weights<N> weights(weight, offset, group);
    T *staged = stretch<T>(team, group, 0);
    for (u32 turn = 0; turn < GROUPS_A_TEAM; ++turn) {
        const u32 index = (blockIdx.x * GROUPS_A_TEAM + turn) * team.in_block + team.index;
        const u64 start = u64(index) * group;
        const bool active = index < groups; // The others still take part in the sum.
        float squares = 0.0f;
        if (active) squares = add_and_stage<T, N>(x + start, delta ? delta + start : nullptr, staged, group, team);
        const float scale = 1.0f / sqrtf(team.sum(squares) / float(group) + eps);
        if (!active) continue;
        if (team.lane == 0) inv_rms[index] = scale;
        for (u32 i = team.lane * N; i < group; i += team.size * N) {
            Pack<N> pack = load<N>(staged + i);
            const Pack<N> w = weights[i];
#pragma unroll
            for (u32 k = 0; k < N; ++k) pack.value[k] = pack.value[k] * scale * w.value[k];
            store(out + start + i, pack);
        }
    }
}

// Keeps d_out and x, and returns this thread's share of the sum of d_out * w * x.
template <typename T, u32 N>
__device__ __forceinline__ float stage_both(const T *d_out, const T *x, const Weights<N> &weights, T *staged_d,
                                            T *staged_x, u32 group, const Team &team) {
    float along = 0.0f;
    for (u32 i = team.lane * N; i < group; i += team.size * N) {
        Pack<N> g = load<N>(d_out + i);
        const Pack<N> value = load<N>(x + i), w = weights[i];
        store(staged_d + i, g);
        store(staged_x + i, value);
#pragma unroll
        for (u32 k = 0; k < N; ++k) g.value[k] *= w.value[k];
        along += dot(g, value);
    }
    return along;
}

template <typename T, u32 N>
__device__ __forceinline__ void backward(const T *d_out, const T *x, const float *weight, float offset,
                                         const float *inv_rms, T *d_x, u32 add, u32 groups, u32 group, u32 bits) {
    const Team team(bits);
    const Weights<N> weights(weight, offset, group);
    T *staged_d = stretch<T>(team, group, 0), *staged_x = stretch<T>(team, group, 1);
    for (u32 turn = 0; turn < GROUPS_A_TEAM; ++turn) {
        const u32 index = (blockIdx.x * GROUPS_A_TEAM + turn) * team.in_block + team.index;
        const u64 start = u64(index) * group;
        const bool active = index < groups; // The others still take part in the sum.
        float product = 0.0f;
        if (active) product = stage_both<T, N>(d_out + start, x + start, weights, staged_d, staged_x, group, team);
        product = team.sum(product);
        if (!active) continue;
        const float scale = inv_rms[index];
        const float along = scale * scale * scale * (product / float(group));
        for (u32 i = team.lane * N; i < group; i += team.size * N) {
            const Pack<N> d = load<N>(staged_d + i), value = load<N>(staged_x + i), w = weights[i];
            Pack<N> result = {};
            if (add) result = load<N>(d_x + start + i);
#pragma unroll
            for (u32 k = 0; k < N; ++k) result.value[k] += scale * (d.value[k] * w.value[k]) - along * value.value[k];
            store(d_x + start + i, result);
        }
    }
}

#define KERNELS(T, SUFFIX)                                                                                            \
    extern "C" __global__ void __launch_bounds__(TEAM_THREADS) add_rms_norm##SUFFIX(                                  \
        T *x, const T *delta, const float *weight, float offset, float eps, T *out, float *inv_rms, u32 groups,       \
        u32 group, u32 bits) {                                                                                        \
        if (group % WIDTH<T> == 0) {                                                                                  \
            forward<T, WIDTH<T>>(x, delta, weight, offset, eps, out, inv_rms, groups, group, bits);                   \
        } else {                                                                                                      \
            forward<T, 1>(x, delta, weight, offset, eps, out, inv_rms, groups, group, bits);                          \
        }                                                                                                             \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(TEAM_THREADS) rms_norm_backward##SUFFIX(                             \
        const T *d_out, const T *x, const float *weight, float offset, const float *inv_rms, T *d_x, u32 add,         \
        u32 groups, u32 group, u32 bits) {                                                                            \
        if (group % WIDTH<T> == 0) {                                                                                  \
            backward<T, WIDTH<T>>(d_out, x, weight, offset, inv_rms, d_x, add, groups, group, bits);                  \
        } else {                                                                                                      \
            backward<T, 1>(d_out, x, weight, offset, inv_rms, d_x, add, groups, group, bits);                         \
        }                                                                                                             \
    }

FOR_EACH_STORAGE(KERNELS)
