// Operations that copy or add whole rows. All are bound by memory; each byte moves once:
//
//   gather_rows    embedding and loss rows   reads N rows and indices, writes N rows; 1 multiplication an element
//   scatter_rows   its gradient              reads N rows and T indices, writes T rows; no arithmetic
//   add            x += y                    reads 2 values an element, writes 1; 1 addition an element
#include "team.cuh"

template <typename T, u32 N>
__device__ __forceinline__ void scaled_row(const T *from, float scale, T *to, u32 cols, const Team &team) {
    for (u32 i = team.lane * N; i < cols; i += team.size * N) {
        Pack<N> pack = load<N>(from + i);
#pragma unroll
        for (u32 k = 0; k < N; ++k) pack.value[k] *= scale;
        store(to + i, pack);
    }
}

// out[i] = scale * table[rows[i]]. A team a row.
template <typename T>
__device__ __forceinline__ void gather_rows(const T *table, const u32 *rows, float scale, T *out, u32 count, u32 cols,
                                            u32 bits) {
    const Team team(bits);
    const u32 row = blockIdx.x * team.in_block + team.index;
    if (row >= count) return;
    const T *from = table + u64(rows[row]) * cols;
    T *to = out + u64(row) * cols;
    if (cols % WIDTH<T> == 0) {
        scaled_row<T, WIDTH<T>>(from, scale, to, cols, team);
    } else {
        scaled_row<T, 1>(from, scale, to, cols, team);
    }
}

// inverse[rows[i]] = i + 1, in what was zero before.
extern "C" __global__ void __launch_bounds__(TEAM_THREADS) invert_rows(const u32 *rows, u32 *inverse, u32 count) {
    const u32 i = blockIdx.x * TEAM_THREADS + threadIdx.x;
    if (i < count) inverse[rows[i]] = i + 1;
}

template <typename T, u32 N>
__device__ __forceinline__ void copied_or_zero_row(const T *from, T *to, u32 cols, const Team &team) {
    for (u32 i = team.lane * N; i < cols; i += team.size * N) {
        Pack<N> pack = {};
        if (from) pack = load<N>(from + i);
        store(to + i, pack);
    }
}

// d_x[rows[i]] = d_out[i], every other of `total` rows zero. A team a row of d_x, which learns from `inverse` where it
// comes from: so each row is written once, zero or not.
template <typename T>
__device__ __forceinline__ void scatter_rows(const T *d_out, const u32 *inverse, T *d_x, u32 total, u32 cols,
                                             u32 bits) {
    const Team team(bits);
    const u32 row = blockIdx.x * team.in_block + team.index;
    if (row >= total) return;
    const u32 i = inverse[row];
    const T *from = i > 0 ? d_out + u64(i - 1) * cols : nullptr;
    T *to = d_x + u64(row) * cols;
    if (cols % WIDTH<T> == 0) {
        copied_or_zero_row<T, WIDTH<T>>(from, to, cols, team);
    } else {
        copied_or_zero_row<T, 1>(from, to, cols, team);
    }
}

template <typename T, u32 N> __device__ __forceinline__ void add_pack(T *x, const T *y) {
    Pack<N> sum = load<N>(x);
    const Pack<N> other = load<N>(y);
#pragma unroll
    for (u32 k = 0; k < N; ++k) sum.value[k] += other.value[k];
    store(x, sum);
}

// x += y. A thread a pack of 16 bytes; the last one takes what is left over.
template <typename T> __device__ __forceinline__ void add(T *x, const T *y, u64 len) {
    const u64 i = (u64(blockIdx.x) * TEAM_THREADS + threadIdx.x) * WIDTH<T>;
    if (i + WIDTH<T> <= len) {
        add_pack<T, WIDTH<T>>(x + i, y + i);
    } else {
        for (u64 k = i; k < len; ++k) add_pack<T, 1>(x + k, y + k);
    }
}

#define KERNELS(T, SUFFIX)                                                                                            \
    extern "C" __global__ void __launch_bounds__(TEAM_THREADS) gather_rows##SUFFIX(                                   \
        const T *table, const u32 *rows, float scale, T *out, u32 count, u32 cols, u32 bits) {                        \
        gather_rows(table, rows, scale, out, count, cols, bits);                                                      \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(TEAM_THREADS) scatter_rows##SUFFIX(                                  \
        const T *d_out, const u32 *inverse, T *d_x, u32 total, u32 cols, u32 bits) {                                  \
        scatter_rows(d_out, inverse, d_x, total, cols, bits);                                                         \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(TEAM_THREADS) add##SUFFIX(T *x, const T *y, u64 len) {               \
        add(x, y, len);                                                                                               \
    }

FOR_EACH_STORAGE(KERNELS)
