// Causal attention over packed sequences, backward (FlashAttention, 2205.14135, section 3.1 and appendix B.4): the
// probabilities are computed anew from the saved log-sum-exp L, so that no matrix of scores is ever stored.
//
//     P = exp(scale Q Kᵀ - L)    dV = Pᵀ dO    dP = dO Vᵀ    delta = rowsum(dO * O)    dS = P * (dP - delta)
//     dQ = scale dS K            dK = scale dSᵀ Q
//
// Every sum has one owner and one order, so the bits are the same on each run and no atomics are needed:
// - `attention_delta`: a team of lanes owns delta of one row and head, and puts L beside it;
// - `attention_query_gradient`: a block owns the queries of a tile and meets the keys that they see;
// - `attention_key_gradients`: a block owns the keys and values of a tile and meets the queries that see them, of all
//   query heads of the group in turn.
// The price of having owners is that S and dP are computed twice: 14 T H n D FLOPs for T tokens that see n keys on
// average, H heads of D channels, instead of 10. Floor in bytes: q, k, v, dO twice, O once, dQ, dK, dV once.
//
// The two passes are mirror images. An owner's rows stay in shared memory, 16 a warp; what it meets passes through two
// stages of shared memory, one being filled while the other is used. Scores, as Q Kᵀ for queries and as K Qᵀ for keys,
// stay in registers, in the layout in which the next product takes them.
//
// sass: attention_*_[0-9]*_bf16 HMMA LDSM LDGSTS
#include "attention_plain.cuh"
#include "mma.cuh"

constexpr u32 THREADS = 128;
// Rows of an owner, and rows that it meets at a time: what registers and 99 KiB of shared memory allow.
constexpr u32 OWN_QUERIES = 64;
template <u32 D> constexpr u32 MET_KEYS = D == 64 ? 64 : D <= 128 ? 32 : 16;
template <u32 D> constexpr u32 OWN_KEYS = D <= 128 ? 64 : 32;
template <u32 D> constexpr u32 MET_QUERIES = D == 64 ? 64 : D <= 128 ? 32 : 16;

// ---- delta ---------------------------------------------------------------------------------------------------------

constexpr u32 DELTA_THREADS = 256;
constexpr u32 TEAM = 4;

// Items are pairs of row and head, `channels` apart; N channels an access. What the passes read together is written
// together, and the rows of a head one after the other: the passes read it once for each tile they meet.
template <u32 N, typename T>
__device__ __forceinline__ void row_products(const T *d_out, const T *out, const float *log_sum_exp, u32 tokens,
                                             u32 heads, u32 channels, float2 *statistics) {
    const u32 item = (blockIdx.x * DELTA_THREADS + threadIdx.x) / TEAM, items = tokens * heads;
    const size_t start = static_cast<size_t>(min(item, items - 1)) * channels;
    float sum = 0.0f;
    for (u32 channel = threadIdx.x % TEAM * N; channel < channels; channel += TEAM * N) {
        const Pack<N> left = load<N>(d_out + start + channel), right = load<N>(out + start + channel);
#pragma unroll
        for (u32 i = 0; i < N; ++i) sum = fmaf(left.value[i], right.value[i], sum);
    }
    sum = lanes_reduce(sum, TEAM, Sum());
    if (threadIdx.x % TEAM == 0 && item < items) {
        const u32 row = item / heads, head = item % heads;
        statistics[static_cast<size_t>(head) * tokens + row] = make_float2(log_sum_exp[item] * LOG2_E, sum);
    }
}

// Grid: [ceil(tokens * heads * 4 / 256)] blocks.
#define DELTA(T, SUFFIX)                                                                                              \
    extern "C" __global__ void __launch_bounds__(DELTA_THREADS)                                                       \
        attention_delta##SUFFIX(const T *d_out, const T *out, const float *log_sum_exp, u32 tokens, u32 heads,        \
                                u32 channels, float2 *statistics) {                                                   \
        if (channels % WIDTH<T> == 0) {                                                                               \
            row_products<WIDTH<T>>(d_out, out, log_sum_exp, tokens, heads, channels, statistics);                     \
        } else {                                                                                                      \
            row_products<1>(d_out, out, log_sum_exp, tokens, heads, channels, statistics);                            \
        }                                                                                                             \
    }
FOR_EACH_STORAGE(DELTA)

// ---- queries -------------------------------------------------------------------------------------------------------

template <u32 D>
__device__ __forceinline__ void query_gradient(const Saved<bf16> &saved, const Tile &tile, u32 head, const Shape &shape,
                                               bf16 *d_q) {
    constexpr u32 KEYS = MET_KEYS<D>, BYTES = tile_bytes<D>(KEYS);
    extern __shared__ __align__(128) unsigned char shared[];
    const u32 q_tile = shared_address(shared), d_tile = q_tile + tile_bytes<D>(OWN_QUERIES);
    const u32 met = d_tile + tile_bytes<D>(OWN_QUERIES); // Keys, values, keys, values.
    const u32 q_stride = shape.heads * D, kv_stride = shape.kv_heads * D;
    const u32 rows = tile.rows(OWN_QUERIES), end = tile.first + rows, warp_row = threadIdx.x / WARP * 16;
    const size_t own = tile.row() * q_stride + head * D;
    const auto copy_keys = [&](u32 key, u32 stage) {
        const size_t from = (static_cast<size_t>(tile.start) + key) * kv_stride + shape.kv_of(head) * D;
        copy_tile<D, KEYS, THREADS>(met + 2 * stage * BYTES, saved.k + from, kv_stride, end - key);
        copy_tile<D, KEYS, THREADS>(met + (2 * stage + 1) * BYTES, saved.v + from, kv_stride, end - key);
    };

    u32 key = first_visible(tile.first, shape.window);
    copy_tile<D, OWN_QUERIES, THREADS>(q_tile, saved.q + own, q_stride, rows);
    copy_tile<D, OWN_QUERIES, THREADS>(d_tile, saved.d_out + own, q_stride, rows);
    copy_keys(key, 0);
    float log_sum_exp[2], delta[2]; // Of rows g and g + 8; in units of log 2.
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 row = warp_row + sum_row(2 * half);
        const float2 *statistic = saved.statistics_of(head) + tile.row() + row;
        log_sum_exp[half] = row < rows ? statistic->x : 0.0f;
        delta[half] = row < rows ? statistic->y : 0.0f;
    }
    Sums sums[D / 8];
    clear(sums);
    for (u32 stage = 0; key < end; key += KEYS, stage ^= 1) {
        wait_for_copies();
        __syncthreads(); // This stage has arrived, and nobody reads the other any more.
        if (key + KEYS < end) copy_keys(key + KEYS, stage ^ 1);
        const u32 k_tile = met + 2 * stage * BYTES, v_tile = k_tile + BYTES;
        Sums scores[KEYS / 8], d_p[KEYS / 8];
        multiply_transposed<D>(scores, q_tile, warp_row, k_tile);
        multiply_transposed<D>(d_p, d_tile, warp_row, v_tile);
        const bool whole = all_visible(tile.first, rows, key, KEYS, shape.window);
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const float p = exp2_fast(scores[n][i] * (shape.scale * LOG2_E) - log_sum_exp[i / 2]);
                const bool seen =
                    whole || visible(tile.first + warp_row + sum_row(i), key + sum_column(n, i), shape.window);
                scores[n][i] = seen ? p * (d_p[n][i] - delta[i / 2]) : 0.0f;
            }
        }
        multiply_add<D>(sums, scores, k_tile, 0);
    }
    if (warp_row >= rows) return;
    store_rows<D>(shared, warp_row, 0, sums, {shape.scale, shape.scale}, d_q + own + warp_row * q_stride, q_stride,
                  rows - warp_row);
}

// ---- keys and values -----------------------------------------------------------------------------------------------

// Two gradients of 256 channels are more than a warp's registers hold: there, two warps share 16 rows and have half of
// the channels each.
template <u32 D> constexpr u32 GRADIENT_CHANNELS = D * OWN_KEYS<D> / 64;

template <u32 D>
__device__ __forceinline__ void key_gradients(const Saved<bf16> &saved, const Tile &tile, u32 kv, const Shape &shape,
                                              bf16 *d_k, bf16 *d_v) {
    constexpr u32 KEYS = OWN_KEYS<D>, QUERIES = MET_QUERIES<D>, BYTES = tile_bytes<D>(QUERIES);
    constexpr u32 CHANNELS = GRADIENT_CHANNELS<D>;
    extern __shared__ __align__(128) unsigned char shared[];
    const u32 k_tile = shared_address(shared), v_tile = k_tile + tile_bytes<D>(KEYS);
    const u32 met = v_tile + tile_bytes<D>(KEYS);                 // Queries, d_out, queries, d_out.
    const u32 statistics_at = tile_bytes<D>(2 * KEYS) + 4 * BYTES; // (log_sum_exp, delta) of the queries, twice.
    const u32 q_stride = shape.heads * D, kv_stride = shape.kv_heads * D, group = shape.heads / shape.kv_heads;
    const u32 rows = tile.rows(KEYS), end = min(tile.length, tile.first + rows - 1 + shape.window);
    const u32 tiles = ceil_div(end - tile.first, QUERIES);
    const u32 warp = threadIdx.x / WARP, warp_row = warp % (KEYS / 16) * 16, channel = warp / (KEYS / 16) * CHANNELS;
    const size_t own = tile.row() * kv_stride + kv * D;
    // Meeting `i`: tile `i % tiles` of the queries of head `i / tiles` of the group.
    const auto copy_queries = [&](u32 i, u32 stage) {
        const u32 head = kv * group + i / tiles, first = i % tiles * QUERIES, count = end - tile.first - first;
        const size_t row = tile.row() + first, from = row * q_stride + head * D;
        copy_tile<D, QUERIES, THREADS>(met + 2 * stage * BYTES, saved.q + from, q_stride, count);
        copy_tile<D, QUERIES, THREADS>(met + (2 * stage + 1) * BYTES, saved.d_out + from, q_stride, count);
        if (threadIdx.x < QUERIES) {
            const u32 query = threadIdx.x;
            const float2 *source = saved.statistics_of(head) + row + (query < count ? query : 0);
            copy_8(k_tile + statistics_at + (stage * QUERIES + query) * 8, source, query < count);
        }
    };

    copy_tile<D, KEYS, THREADS>(k_tile, saved.k + own, kv_stride, rows);
    copy_tile<D, KEYS, THREADS>(v_tile, saved.v + own, kv_stride, rows);
    copy_queries(0, 0);
    Sums k_sums[CHANNELS / 8], v_sums[CHANNELS / 8];
    clear(k_sums);
    clear(v_sums);
    for (u32 i = 0; i < group * tiles; ++i) {
        const u32 stage = i % 2;
        wait_for_copies();
        __syncthreads(); // This stage has arrived, and nobody reads the other any more.
        if (i + 1 < group * tiles) copy_queries(i + 1, stage ^ 1);
        const u32 q_tile = met + 2 * stage * BYTES, d_tile = q_tile + BYTES, first = tile.first + i % tiles * QUERIES;
        const float2 *statistics = reinterpret_cast<const float2 *>(shared + statistics_at) + stage * QUERIES;
        const bool whole = all_visible(first, QUERIES, tile.first, KEYS, shape.window);
        // Transposed: keys are rows, queries columns. Missing queries are zero in all that they bring.
        Sums scores[QUERIES / 8], d_p[QUERIES / 8];
        multiply_transposed<D>(scores, k_tile, warp_row, q_tile);
#pragma unroll
        for (u32 n = 0; n < QUERIES / 8; ++n) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                const u32 column = sum_column(n, j);
                const float p = exp2_fast(scores[n][j] * (shape.scale * LOG2_E) - statistics[column].x);
                const bool seen = whole || visible(first + column, tile.first + warp_row + sum_row(j), shape.window);
                scores[n][j] = seen ? p : 0.0f;
            }
        }
        multiply_add<D>(v_sums, scores, d_tile, channel);
        multiply_transposed<D>(d_p, v_tile, warp_row, d_tile);
#pragma unroll
        for (u32 n = 0; n < QUERIES / 8; ++n) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) scores[n][j] *= d_p[n][j] - statistics[sum_column(n, j)].y;
        }
        multiply_add<D>(k_sums, scores, q_tile, channel);
    }
    __syncthreads(); // The tiles of keys and values are free to pass the results through.
    if (warp_row >= rows) return;
    const size_t to = own + warp_row * kv_stride;
    store_rows<D>(shared, warp_row, channel, k_sums, {shape.scale, shape.scale}, d_k + to, kv_stride, rows - warp_row);
    store_rows<D>(shared + tile_bytes<D>(KEYS), warp_row, channel, v_sums, {1.0f, 1.0f}, d_v + to, kv_stride,
                  rows - warp_row);
}

// ---- entry points --------------------------------------------------------------------------------------------------

// Grids: [T / 64 + sequences, heads] blocks, and [T / OWN_KEYS + sequences, kv_heads]. The tiles with the most to do,
// the last queries and the first keys, go first.
#define TENSOR_BACKWARD(D)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_query_gradient_##D##_bf16(                        \
        const bf16 *d_out, const bf16 *q, const bf16 *k, const bf16 *v, const float2 *statistics, u32 tokens,         \
        const u32 *bounds, u32 sequences, u32 heads, u32 kv_heads, u32 window, float scale, bf16 *d_q) {              \
        const Tile tile = find_tile<OWN_QUERIES>(bounds, sequences, gridDim.x - 1 - blockIdx.x);                      \
        if (tile.empty()) return;                                                                                     \
        query_gradient<D>({d_out, q, k, v, statistics, tokens}, tile, blockIdx.y, {heads, kv_heads, window, scale},   \
                          d_q);                                                                                       \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_key_gradients_##D##_bf16(                         \
        const bf16 *d_out, const bf16 *q, const bf16 *k, const bf16 *v, const float2 *statistics, u32 tokens,         \
        const u32 *bounds, u32 sequences, u32 heads, u32 kv_heads, u32 window, float scale, bf16 *d_k, bf16 *d_v) {   \
        const Tile tile = find_tile<OWN_KEYS<D>>(bounds, sequences, blockIdx.x);                                      \
        if (tile.empty()) return;                                                                                     \
        key_gradients<D>({d_out, q, k, v, statistics, tokens}, tile, blockIdx.y, {heads, kv_heads, window, scale},    \
                         d_k, d_v);                                                                                   \
    }
TENSOR_BACKWARD(64)
TENSOR_BACKWARD(96)
TENSOR_BACKWARD(128)
TENSOR_BACKWARD(256)

// Grids: [T / 16 + sequences, heads] blocks, and [T / 16 + sequences, kv_heads].
#define PLAIN_BACKWARD(T, SUFFIX)                                                                                     \
    extern "C" __global__ void __launch_bounds__(PLAIN_THREADS, 1) attention_query_gradient_plain##SUFFIX(            \
        const T *d_out, const T *q, const T *k, const T *v, const float2 *statistics, u32 tokens,                     \
        const u32 *bounds, u32 sequences, u32 heads, u32 kv_heads, u32 window, float scale, u32 channels, T *d_q) {   \
        const Tile tile = find_tile<SIDE>(bounds, sequences, gridDim.x - 1 - blockIdx.x);                             \
        if (tile.empty()) return;                                                                                     \
        query_gradient_plainly<T>({d_out, q, k, v, statistics, tokens}, tile, blockIdx.y,                             \
                                  {heads, kv_heads, window, scale}, channels, d_q);                                   \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(PLAIN_THREADS, 1) attention_key_gradients_plain##SUFFIX(             \
        const T *d_out, const T *q, const T *k, const T *v, const float2 *statistics, u32 tokens,                     \
        const u32 *bounds, u32 sequences, u32 heads, u32 kv_heads, u32 window, float scale, u32 channels, T *d_k,     \
        T *d_v) {                                                                                                     \
        const Tile tile = find_tile<SIDE>(bounds, sequences, blockIdx.x);                                             \
        if (tile.empty()) return;                                                                                     \
        key_gradients_plainly<T>({d_out, q, k, v, statistics, tokens}, tile, blockIdx.y,                              \
                                 {heads, kv_heads, window, scale}, channels, d_k, d_v);                               \
    }
FOR_EACH_STORAGE(PLAIN_BACKWARD)
