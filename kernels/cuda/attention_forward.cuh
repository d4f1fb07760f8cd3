// Flash attention, forward, on tensor cores (FlashAttention-2, 2307.08691, algorithm 1), for bf16.
//
//     S = scale Q Kᵀ    P = softmax(S), row by row, over the visible keys    O = P V    L = log sum exp S
//
// A block owns 64 queries of one head, a warp 16 of them; it meets the keys in tiles. Each row keeps the largest score
// m met so far and the sum l of e^(s - m); a larger m rescales l and O (Milakov and Gimelshein, 1805.02867). Scores,
// probabilities and O live in registers: S comes out of the first product in the layout that the second takes P in.
//
// Keys and values have one shared tile each: values arrive while the scores are computed, the next keys while the
// probabilities meet the values.
#pragma once

#include "attention.cuh"
#include "mma.cuh"

constexpr u32 FORWARD_THREADS = 128;
constexpr u32 FORWARD_QUERIES = 64;
template <u32 D> constexpr u32 FORWARD_KEYS = D <= 128 ? 64 : 32;
// Up to here the fragments of Q stay in registers; a wider Q is loaded anew for each tile of keys.
constexpr u32 KEPT_CHANNELS = 128;

// Running softmax of a lane's two rows, g and g + 8 (see mma.cuh), in units of log 2.
struct Softmax {
    float largest[2] = {MINUS_INFINITY, MINUS_INFINITY};
    float sum[2] = {0.0f, 0.0f}; // This lane's share.

    // Turns scores into e^(score - largest) and rescales `out` to the new largest.
    template <u32 N, u32 M> __device__ __forceinline__ void update(Sums (&scores)[N], Sums (&out)[M]) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            float most = largest[half];
#pragma unroll
            for (u32 n = 0; n < N; ++n) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            most = lanes_reduce(most, 4, Max());
            // A row that has seen no key yet has nothing to rescale; infinity minus infinity is to be avoided.
            const float shift = most == MINUS_INFINITY ? 0.0f : most;
            const float rescale = exp2_fast(largest[half] - shift);
            largest[half] = most;
            sum[half] *= rescale;
#pragma unroll
            for (u32 n = 0; n < N; ++n) {
#pragma unroll
                for (u32 i = 2 * half; i < 2 * half + 2; ++i) {
                    scores[n][i] = exp2_fast(scores[n][i] - shift);
                    sum[half] += scores[n][i];
                }
            }
#pragma unroll
            for (u32 m = 0; m < M; ++m) {
                out[m][2 * half] *= rescale;
                out[m][2 * half + 1] *= rescale;
            }
        }
    }
};

// Scores in units of log 2, minus infinity where the query does not see the key.
template <u32 N>
__device__ __forceinline__ void scale_and_mask(Sums (&scores)[N], float scale, bool whole, u32 query, u32 key,
                                               u32 window) {
#pragma unroll
    for (u32 n = 0; n < N; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const bool seen = whole || visible(query + sum_row(i), key + sum_column(n, i), window);
            scores[n][i] = seen ? scores[n][i] * scale : MINUS_INFINITY;
        }
    }
}

// `log_sum_exp` may be null.
template <u32 D>
__device__ __forceinline__ void attend(const bf16 *q, const bf16 *k, const bf16 *v, const Queries &queries, u32 head,
                                       const Shape &shape, bf16 *out, float *log_sum_exp) {
    constexpr u32 KEYS = FORWARD_KEYS<D>;
    extern __shared__ __align__(128) unsigned char shared[];
    const u32 q_tile = shared_address(shared), k_tile = q_tile + tile_bytes<D>(FORWARD_QUERIES);
    const u32 v_tile = k_tile + tile_bytes<D>(KEYS);
    const u32 q_stride = shape.heads * D, kv_stride = shape.kv_heads * D;
    const u32 end = queries.position + queries.count;
    const size_t kv_offset = queries.key_row * kv_stride + shape.kv_of(head) * D;
    const auto copy_keys = [&](u32 tile, const bf16 *from, u32 key) {
        copy_tile<D, KEYS, FORWARD_THREADS>(tile, from + kv_offset + static_cast<size_t>(key) * kv_stride, kv_stride,
                                            end - key);
    };
    const u32 warp_row = threadIdx.x / WARP * 16;

    u32 key = first_visible(queries.position, shape.window);
    copy_tile<D, FORWARD_QUERIES, FORWARD_THREADS>(q_tile, q + queries.row * q_stride + head * D, q_stride,
                                                   queries.count);
    copy_keys(k_tile, k, key);
    Softmax softmax;
    Sums sums[D / 8];
    clear(sums);
    Fragment kept[D <= KEPT_CHANNELS ? D / 16 : 1];
    for (bool first = true; key < end; key += KEYS, first = false) {
        wait_for_copies();
        __syncthreads(); // The keys have arrived, and nobody reads the last values any more.
        copy_keys(v_tile, v, key);
        Sums scores[KEYS / 8];
        if constexpr (D <= KEPT_CHANNELS) {
            if (first) {
#pragma unroll
                for (u32 column = 0; column < D; column += 16) load_a<D>(kept[column / 16], q_tile, warp_row, column);
            }
            clear(scores);
#pragma unroll
            for (u32 column = 0; column < D; column += 16) {
                multiply_slice<D>(scores, kept[column / 16], k_tile, column);
            }
        } else {
            multiply_transposed<D>(scores, q_tile, warp_row, k_tile);
        }
        wait_for_copies();
        __syncthreads(); // The values have arrived, and nobody reads these keys any more.
        if (key + KEYS < end) copy_keys(k_tile, k, key + KEYS);
        const bool whole = all_visible(queries.position, queries.count, key, KEYS, shape.window);
        scale_and_mask(scores, shape.scale * LOG2_E, whole, queries.position + warp_row, key, shape.window);
        softmax.update(scores, sums);
        multiply_add<D>(sums, scores, v_tile, 0);
    }

    float inverse[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const float sum = lanes_reduce(softmax.sum[half], 4, Sum());
        const u32 row = warp_row + sum_row(2 * half);
        inverse[half] = 1.0f / sum;
        if (log_sum_exp != nullptr && threadIdx.x % 4 == 0 && row < queries.count) {
            log_sum_exp[(queries.row + row) * shape.heads + head] = softmax.largest[half] * LN_2 + logf(sum);
        }
    }
    if (warp_row < queries.count) {
        store_rows<D>(shared, warp_row, 0, sums, inverse, out + (queries.row + warp_row) * q_stride + head * D,
                      q_stride, queries.count - warp_row);
    }
}
