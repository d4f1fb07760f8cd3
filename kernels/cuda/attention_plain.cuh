// Attention in plain f32 arithmetic: for f32 storage, and for bf16 where the head size is not one that the tensor-core
// programs are made for. Any head size up to 256.
//
// A block of 256 threads owns 16 rows of one head, queries or keys, and meets the others in tiles of 16. Thread (i, j)
// owns the score of own row i and met row j, and then channels j, j + 16, ... of what is summed for row i. The sixteen
// threads of a row are half a warp, so scores pass between them without a barrier of the block.
//
// Rows of shared tiles lie an odd number of words apart: sixteen rows at one channel are in sixteen banks.
#pragma once

#include "attention.cuh"

constexpr u32 PLAIN_THREADS = 256;
constexpr u32 SIDE = 16;
constexpr u32 MOST_CHANNELS = 256;
constexpr u32 OWNED = MOST_CHANNELS / SIDE;

// A matrix of heads side by side, and one head of it.
template <typename T> struct Head {
    T *data;
    u32 stride, offset;

    __device__ __forceinline__ Head(T *matrix, u32 heads, u32 head, u32 channels)
        : data(matrix), stride(heads * channels), offset(head * channels) {}
    __device__ __forceinline__ T *row(size_t row) const { return data + row * stride + offset; }
};

// Sixteen rows of one head in shared memory.
struct PlainTile {
    float *data;
    u32 channels;

    __device__ __forceinline__ u32 stride() const { return channels | 1; }
    __device__ __forceinline__ const float *row(u32 i) const { return data + i * stride(); }

    // Copies `rows` rows; the others become zero. A warp takes whole rows.
    template <typename T> __device__ __forceinline__ void fill(const Head<T> &from, size_t first, u32 rows) const {
        for (u32 row = threadIdx.x / WARP; row < SIDE; row += PLAIN_THREADS / WARP) {
            for (u32 channel = threadIdx.x % WARP; channel < channels; channel += WARP) {
                data[row * stride() + channel] = row < rows ? widen(from.row(first + row)[channel]) : 0.0f;
            }
        }
    }
};

// The block's shared memory: some tiles, then 16 x 16 weights, one table or two.
struct PlainShared {
    u32 channels;

    __device__ __forceinline__ float *base() const {
        extern __shared__ __align__(128) unsigned char shared[];
        return reinterpret_cast<float *>(shared);
    }
    __device__ __forceinline__ PlainTile tile(u32 index) const {
        const u32 floats = SIDE * (channels | 1);
        return {base() + index * floats, channels};
    }
    __device__ __forceinline__ float *weights(u32 tiles, u32 table) const {
        return tile(tiles).data + table * SIDE * SIDE;
    }
};

__device__ __forceinline__ u32 own_row() { return threadIdx.x / SIDE; }
__device__ __forceinline__ u32 met_row() { return threadIdx.x % SIDE; }

__device__ __forceinline__ float dot(const float *a, const float *b, u32 channels) {
    float sum = 0.0f;
    for (u32 channel = 0; channel < channels; ++channel) sum = fmaf(a[channel], b[channel], sum);
    return sum;
}

// What a thread sums: channels met_row(), met_row() + 16, ... of its own row.
struct OwnSums {
    float value[OWNED] = {};

    // `sums += weights rows`: the weights of the own row, the rows of a tile.
    __device__ __forceinline__ void add(const float *weights, const PlainTile &rows) {
#pragma unroll
        for (u32 c = 0; c < OWNED; ++c) {
            const u32 channel = c * SIDE + met_row();
            if (channel < rows.channels) {
#pragma unroll
                for (u32 j = 0; j < SIDE; ++j) value[c] = fmaf(weights[j], rows.row(j)[channel], value[c]);
            }
        }
    }

    __device__ __forceinline__ void scale(float factor) {
#pragma unroll
        for (u32 c = 0; c < OWNED; ++c) value[c] *= factor;
    }

    template <typename T> __device__ __forceinline__ void store(T *row, u32 channels) const {
#pragma unroll
        for (u32 c = 0; c < OWNED; ++c) {
            const u32 channel = c * SIDE + met_row();
            if (channel < channels) row[channel] = narrow<T>(value[c]);
        }
    }
};

// Forward; the equations stand in attention_forward.cuh. `log_sum_exp` may be null.
template <typename T>
__device__ __forceinline__ void attend_plainly(const T *q, const T *k, const T *v, const Queries &queries, u32 head,
                                               const Shape &shape, u32 channels, T *out, float *log_sum_exp) {
    const PlainShared shared{channels};
    const PlainTile q_tile = shared.tile(0), k_tile = shared.tile(1), v_tile = shared.tile(2);
    float *weights = shared.weights(3, 0) + own_row() * SIDE;
    const Head<const T> keys(k, shape.kv_heads, shape.kv_of(head), channels);
    const Head<const T> values(v, shape.kv_heads, shape.kv_of(head), channels);
    const u32 end = queries.position + queries.count, query = queries.position + own_row();

    q_tile.fill(Head<const T>(q, shape.heads, head, channels), queries.row, queries.count);
    float largest = MINUS_INFINITY, sum = 0.0f;
    OwnSums sums;
    for (u32 key = first_visible(queries.position, shape.window); key < end; key += SIDE) {
        __syncthreads();
        k_tile.fill(keys, queries.key_row + key, end - key);
        v_tile.fill(values, queries.key_row + key, end - key);
        __syncthreads();
        const bool seen = visible(query, key + met_row(), shape.window);
        const float product = dot(q_tile.row(own_row()), k_tile.row(met_row()), channels);
        const float score = seen ? product * (shape.scale * LOG2_E) : MINUS_INFINITY;
        const float most = fmaxf(largest, lanes_reduce(score, SIDE, Max()));
        const float shift = most == MINUS_INFINITY ? 0.0f : most;
        const float rescale = exp2f(largest - shift), weight = exp2f(score - shift);
        largest = most;
        sum = sum * rescale + lanes_reduce(weight, SIDE, Sum());
        weights[met_row()] = weight;
        __syncwarp();
        sums.scale(rescale);
        sums.add(weights, v_tile);
    }
    if (own_row() >= queries.count) return;
    sums.scale(1.0f / sum);
    sums.store(Head<T>(out, shape.heads, head, channels).row(queries.row + own_row()), channels);
    if (log_sum_exp != nullptr && met_row() == 0) {
        log_sum_exp[(queries.row + own_row()) * shape.heads + head] = largest * LN_2 + logf(sum);
    }
}

// What the backward passes read.
template <typename T> struct Saved {
    const T *d_out, *q, *k, *v;
    const float2 *statistics; // (L in units of log 2, delta) of head h, row t at h * tokens + t.
    u32 tokens;

    __device__ __forceinline__ const float2 *statistics_of(u32 head) const {
        return statistics + static_cast<size_t>(head) * tokens;
    }
};

// The gradient of the queries; the equations stand in attention_backward.cu.
template <typename T>
__device__ __forceinline__ void query_gradient_plainly(const Saved<T> &saved, const Tile &tile, u32 head,
                                                       const Shape &shape, u32 channels, T *d_q) {
    const PlainShared shared{channels};
    const PlainTile q_tile = shared.tile(0), d_tile = shared.tile(1), k_tile = shared.tile(2), v_tile = shared.tile(3);
    float *weights = shared.weights(4, 0) + own_row() * SIDE;
    const Head<const T> keys(saved.k, shape.kv_heads, shape.kv_of(head), channels);
    const Head<const T> values(saved.v, shape.kv_heads, shape.kv_of(head), channels);
    const u32 rows = tile.rows(SIDE), end = tile.first + rows, query = tile.first + own_row();
    const bool own = own_row() < rows;

    q_tile.fill(Head<const T>(saved.q, shape.heads, head, channels), tile.row(), rows);
    d_tile.fill(Head<const T>(saved.d_out, shape.heads, head, channels), tile.row(), rows);
    const float2 statistic = own ? saved.statistics_of(head)[tile.row() + own_row()] : make_float2(0.0f, 0.0f);
    OwnSums sums;
    for (u32 key = first_visible(tile.first, shape.window); key < end; key += SIDE) {
        __syncthreads();
        k_tile.fill(keys, static_cast<size_t>(tile.start) + key, end - key);
        v_tile.fill(values, static_cast<size_t>(tile.start) + key, end - key);
        __syncthreads();
        const float score = dot(q_tile.row(own_row()), k_tile.row(met_row()), channels) * (shape.scale * LOG2_E);
        const float d_p = dot(d_tile.row(own_row()), v_tile.row(met_row()), channels);
        const bool seen = own && visible(query, key + met_row(), shape.window);
        weights[met_row()] = seen ? exp2f(score - statistic.x) * (d_p - statistic.y) : 0.0f;
        __syncwarp();
        sums.add(weights, k_tile);
    }
    if (!own) return;
    sums.scale(shape.scale);
    sums.store(Head<T>(d_q, shape.heads, head, channels).row(tile.row() + own_row()), channels);
}

// The gradients of the keys and values of key head `kv`, over all query heads that it serves, in order.
template <typename T>
__device__ __forceinline__ void key_gradients_plainly(const Saved<T> &saved, const Tile &tile, u32 kv,
                                                      const Shape &shape, u32 channels, T *d_k, T *d_v) {
    const PlainShared shared{channels};
    const PlainTile k_tile = shared.tile(0), v_tile = shared.tile(1), q_tile = shared.tile(2), d_tile = shared.tile(3);
    float *probabilities = shared.weights(4, 0) + own_row() * SIDE, *d_scores = shared.weights(4, 1) + own_row() * SIDE;
    const u32 rows = tile.rows(SIDE), key = tile.first + own_row(), group = shape.heads / shape.kv_heads;
    const u32 end = min(tile.length, tile.first + rows - 1 + shape.window);

    k_tile.fill(Head<const T>(saved.k, shape.kv_heads, kv, channels), tile.row(), rows);
    v_tile.fill(Head<const T>(saved.v, shape.kv_heads, kv, channels), tile.row(), rows);
    OwnSums k_sums, v_sums;
    for (u32 head = kv * group; head < (kv + 1) * group; ++head) {
        const Head<const T> queries(saved.q, shape.heads, head, channels);
        const Head<const T> d_outs(saved.d_out, shape.heads, head, channels);
        for (u32 first = tile.first; first < end; first += SIDE) {
            __syncthreads();
            q_tile.fill(queries, static_cast<size_t>(tile.start) + first, end - first);
            d_tile.fill(d_outs, static_cast<size_t>(tile.start) + first, end - first);
            __syncthreads();
            const u32 query = first + met_row();
            const bool seen = query < end && visible(query, key, shape.window);
            const float2 *statistics = saved.statistics_of(head) + tile.start;
            const float2 statistic = seen ? statistics[query] : make_float2(0.0f, 0.0f);
            const float score = dot(k_tile.row(own_row()), q_tile.row(met_row()), channels) * (shape.scale * LOG2_E);
            const float d_p = dot(v_tile.row(own_row()), d_tile.row(met_row()), channels);
            const float probability = seen ? exp2f(score - statistic.x) : 0.0f;
            probabilities[met_row()] = probability;
            d_scores[met_row()] = probability * (d_p - statistic.y);
            __syncwarp();
            v_sums.add(probabilities, d_tile);
            k_sums.add(d_scores, q_tile);
        }
    }
    if (own_row() >= rows) return;
    k_sums.scale(shape.scale);
    k_sums.store(Head<T>(d_k, shape.kv_heads, kv, channels).row(tile.row() + own_row()), channels);
    v_sums.store(Head<T>(d_v, shape.kv_heads, kv, channels).row(tile.row() + own_row()), channels);
}
