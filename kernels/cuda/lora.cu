// The low-rank path of a linear layer (Hu et al., 2106.09685): thin products between activations [T, in] or [T, out]
// and the adapter's f32 matrices A [r, in] and B [out, r], r small.
//
//   lora_down       down   = drop(x) A^T                 contraction over in
//   lora_up         y     += scaling * down B^T          expansion over r
//   lora_d_down     d_down = scaling * dy B              contraction over out
//   lora_d_b        dB     = scaling * dy^T down         contraction over T
//   lora_d_a        dA     = d_down^T drop(x)            contraction over T
//   lora_d_x        dx    += drop'(d_down A)             expansion over r
//
// Floor of each, with n the wide side (in or out): 2 T n r FLOPs; T n elements of storage read (and for an expansion
// written) once, (T + n) r elements of f32. That is r FLOPs a byte of bf16: above rank 16 the f32 pipes are the
// limit, not memory. Adapters are f32 and tensor cores would round them, so the products are f32 FMAs on tiles in
// shared memory.
//
// A thin operand is read once a tile of the wide side. So the tiles for ranks up to 16 are long, to keep what is read
// again, and the sums of pieces, below an eighth of the activations; above, tiles are as square as registers allow.
//
// Sums have a fixed order: K is cut every SPLIT elements, a function of the shape alone, the pieces' sums are added
// from first to last by `lora_sum`, and within a block those of the warps likewise.

#include "quads.cuh"

constexpr u32 THREADS = 256;

// ---- dropout --------------------------------------------------------------------------------------------------------

// The dropout of a block's rows: who they are, COUNT of them from `first` on, is looked up once.
template <u32 COUNT> struct RowMask {
    const Dropout &dropout;
    const uint2 *ids; // In shared memory.
    u32 first;

    __device__ __forceinline__ RowMask(const Dropout &dropout, uint2 (&shared)[COUNT], u32 first, u32 rows)
        : dropout(dropout), ids(shared), first(first) {
        if (dropout.threshold == 0) return;
        for (u32 i = threadIdx.x; i < COUNT && first + i < rows; i += THREADS) shared[i] = dropout.row(first + i);
        __syncthreads();
    }

    // The row is one of the matrix.
    __device__ __forceinline__ float4 apply(float4 q, u32 row, u32 col) const {
        if (dropout.threshold == 0) return q;
        const float4 factor = dropout.factors(ids[row - first], col / 4);
        return make_float4(drop(q.x, factor.x), drop(q.y, factor.y), drop(q.z, factor.z), drop(q.w, factor.w));
    }
};

template <typename T, u32 COUNT> struct Dropped {
    Operand<const T> whole;
    RowMask<COUNT> mask;

    __device__ __forceinline__ float4 quad(u32 row, u32 col) const {
        const float4 q = whole.quad(row, col);
        return row < whole.rows ? mask.apply(q, row, col) : q;
    }
};

// ---- tiles ----------------------------------------------------------------------------------------------------------

// How an operand lies in memory: [SIZE, K] or [K, SIZE].
enum class Layout { ByRow, ByK };

// DEPTH x SIZE elements in shared memory, a row for each k. Rows are permuted in groups of eight, so that neither the
// transposing stores of a ByRow operand, nor quads of a ByK operand, nor the reads of `multiply` meet in a bank.
template <u32 SIZE, u32 DEPTH> struct Tile {
    static constexpr u32 STRIDE = SIZE < 32 ? 32 : SIZE;
    static constexpr u32 QUADS = SIZE * DEPTH / 4;
    alignas(16) float values[DEPTH * STRIDE];

    static __device__ __forceinline__ u32 at(u32 k, u32 i) {
        return k * STRIDE + (i ^ (((k >> 2) & 3) << 3) ^ ((k & 1) << 4));
    }

    __device__ __forceinline__ float4 quad(u32 k, u32 i) const {
        return *reinterpret_cast<const float4 *>(&values[at(k, i)]);
    }

    // Place of a quad: k, and the index in the row. A warp takes 8 rows of 16 k, or whole rows of the tile.
    template <Layout LAYOUT> static __device__ __forceinline__ uint2 place(u32 number) {
        if constexpr (LAYOUT == Layout::ByK) return make_uint2(number / (SIZE / 4), number % (SIZE / 4) * 4);
        const u32 lane = number % WARP, group = number / WARP;
        constexpr u32 GROUPS = DEPTH / 16;
        return make_uint2(group % GROUPS * 16 + lane % 4 * 4, group / GROUPS * 8 + lane / 4);
    }

    // From element `i0` of the operand's SIZE side and `k0` of its K side on.
    template <Layout LAYOUT, typename From>
    __device__ __forceinline__ void fill(const From &from, u32 i0, u32 k0) {
#pragma unroll
        for (u32 n = 0; n < ceil_div(QUADS, THREADS); ++n) {
            const u32 number = n * THREADS + threadIdx.x;
            if (QUADS % THREADS != 0 && number >= QUADS) continue;
            const uint2 p = place<LAYOUT>(number);
            if constexpr (LAYOUT == Layout::ByK) {
                *reinterpret_cast<float4 *>(&values[at(p.x, p.y)]) = from.quad(k0 + p.x, i0 + p.y);
            } else {
                const float4 q = from.quad(i0 + p.y, k0 + p.x);
                values[at(p.x, p.y)] = q.x;
                values[at(p.x + 1, p.y)] = q.y;
                values[at(p.x + 2, p.y)] = q.z;
                values[at(p.x + 3, p.y)] = q.w;
            }
        }
    }
};

// A thread's part of a product: QM x QN quads, `step_m` and `step_n` elements apart.
template <u32 QM, u32 QN> struct Sums {
    float value[QM * 4][QN * 4] = {};

    template <typename M, typename N>
    __device__ __forceinline__ void multiply(const M &wide, const N &thin, u32 k, u32 m, u32 step_m, u32 n,
                                             u32 step_n) {
        float a[QM * 4], b[QN * 4];
#pragma unroll
        for (u32 q = 0; q < QM; ++q) *reinterpret_cast<float4 *>(&a[4 * q]) = wide.quad(k, m + q * step_m);
#pragma unroll
        for (u32 q = 0; q < QN; ++q) *reinterpret_cast<float4 *>(&b[4 * q]) = thin.quad(k, n + q * step_n);
#pragma unroll
        for (u32 i = 0; i < QM * 4; ++i)
#pragma unroll
            for (u32 j = 0; j < QN * 4; ++j) value[i][j] = fmaf(a[i], b[j], value[i][j]);
    }

    // Four neighbours on the wide side.
    __device__ __forceinline__ float4 column(u32 q, u32 j) const {
        return make_float4(value[4 * q][j], value[4 * q + 1][j], value[4 * q + 2][j], value[4 * q + 3][j]);
    }
};

// ---- contractions ---------------------------------------------------------------------------------------------------

// A WIDE x THIN tile of the result, for ranks up to 16 or all others, and which warp and lane has which part of it:
// four warps share out the wide side, two divide each stretch of K. A block contracts SPLIT elements of K; lora.rs sizes
// grids by WIDE and SPLIT.
template <u32 THIN> struct Contraction {
    static constexpr u32 WIDE = THIN == 16 ? 512 : 128, SPLIT = THIN == 16 ? 512 : 1024;
    static constexpr u32 DEPTH = THIN == 16 ? 16 : 32;
    static constexpr u32 WARPS_M = 4, WARPS_K = THREADS / WARP / WARPS_M;
    static constexpr u32 LANES_N = THIN == 16 ? 4 : 8, LANES_M = WARP / LANES_N;
    static constexpr u32 QM = WIDE / WARPS_M / LANES_M / 4, QN = THIN / LANES_N / 4;
    static constexpr u32 PITCH = WIDE + 4;
    static constexpr u32 UNROLL = 2; // More spills: a thread has 128 registers.

    union Shared {
        struct {
            Tile<WIDE, DEPTH> wide;
            Tile<THIN, DEPTH> thin;
        } tiles;
        alignas(16) float sums[THIN * PITCH]; // [thin][wide]
    };
};

// out[m, n] = scale * sum over this block's stretch of K of wide[m, k] thin[n, k]; transposed, out[n, m].
template <u32 THIN, Layout WIDE_LAYOUT, Layout THIN_LAYOUT, bool TRANSPOSED, typename Wide, typename Thin>
__device__ __forceinline__ void contract(const Wide &wide, const Thin &thin, float *out, u32 m_count, u32 n_count,
                                         u32 k_count, float scale) {
    using C = Contraction<THIN>;
    constexpr u32 WIDE = C::WIDE;
    __shared__ typename C::Shared shared;
    const u32 m0 = blockIdx.x * WIDE, n0 = blockIdx.z * THIN;
    const u32 k_first = blockIdx.y * C::SPLIT, k_end = min(k_first + C::SPLIT, k_count);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warp_k = warp / C::WARPS_M;
    const u32 warp_m = warp % C::WARPS_M * (WIDE / C::WARPS_M);
    const u32 m = warp_m + lane % C::LANES_M * 4, n = lane / C::LANES_M * 4;

    Sums<C::QM, C::QN> sums;
    for (u32 k0 = k_first; k0 < k_end; k0 += C::DEPTH) {
        shared.tiles.wide.template fill<WIDE_LAYOUT>(wide, m0, k0);
        shared.tiles.thin.template fill<THIN_LAYOUT>(thin, n0, k0);
        __syncthreads();
        // A new token is one row: warps without any have nothing to multiply.
        if (m0 + warp_m < m_count) {
#pragma unroll C::UNROLL
            for (u32 i = 0; i < C::DEPTH / C::WARPS_K; ++i) {
                sums.multiply(shared.tiles.wide, shared.tiles.thin, warp_k * (C::DEPTH / C::WARPS_K) + i, m,
                              4 * C::LANES_M, n, 4 * C::LANES_N);
            }
        }
        __syncthreads(); // The next stretch, or the sums, go where this one lies.
    }

    // The parts of K, added from first to last.
    for (u32 turn = 0; turn < C::WARPS_K; ++turn) {
        if (turn == warp_k) {
#pragma unroll
            for (u32 q = 0; q < C::QM; ++q)
#pragma unroll
                for (u32 j = 0; j < C::QN * 4; ++j) {
                    const u32 row = n + j / 4 * 4 * C::LANES_N + j % 4;
                    float4 *at = reinterpret_cast<float4 *>(&shared.sums[row * C::PITCH + m + q * 4 * C::LANES_M]);
                    const float4 sum = sums.column(q, j), before = turn == 0 ? make_float4(0, 0, 0, 0) : *at;
                    *at = make_float4(before.x + sum.x, before.y + sum.y, before.z + sum.z, before.w + sum.w);
                }
        }
        __syncthreads();
    }
    out += u64(blockIdx.y) * m_count * n_count;
    // A warp writes 32 neighbours of [n, m], or 8 of each of 4 rows of [m, n]: whole sectors, from 32 banks.
    for (u32 i = threadIdx.x; i < WIDE * THIN; i += THREADS) {
        const u32 to_m = TRANSPOSED ? i % WIDE : i / 8 % WIDE, to_n = TRANSPOSED ? i / WIDE : i / 8 / WIDE * 8 + i % 8;
        if (m0 + to_m >= m_count || n0 + to_n >= n_count) continue;
        const u64 to = TRANSPOSED ? u64(n0 + to_n) * m_count + m0 + to_m : u64(m0 + to_m) * n_count + n0 + to_n;
        out[to] = scale * shared.sums[to_n * C::PITCH + to_m];
    }
}

template <u32 THIN, typename T>
__device__ __forceinline__ void down(const T *x, const float *a, float *out, u32 tokens, u32 inp, u32 rank,
                                     float scale, const Dropout &dropout) {
    constexpr u32 WIDE = Contraction<THIN>::WIDE;
    __shared__ uint2 ids[WIDE];
    const RowMask<WIDE> mask(dropout, ids, blockIdx.x * WIDE, tokens);
    const Dropped<T, WIDE> dropped{Operand<const T>(x, tokens, inp), mask};
    contract<THIN, Layout::ByRow, Layout::ByRow, false>(dropped, Operand<const float>(a, rank, inp), out, tokens, rank,
                                                        inp, scale);
}

template <u32 THIN, typename T>
__device__ __forceinline__ void d_a(const T *x, const float *d_down, float *out, u32 tokens, u32 inp, u32 rank,
                                    float scale, const Dropout &dropout) {
    constexpr u32 SPLIT = Contraction<THIN>::SPLIT;
    __shared__ uint2 ids[SPLIT];
    const RowMask<SPLIT> mask(dropout, ids, blockIdx.y * SPLIT, tokens);
    const Dropped<T, SPLIT> dropped{Operand<const T>(x, tokens, inp), mask};
    contract<THIN, Layout::ByK, Layout::ByK, true>(dropped, Operand<const float>(d_down, tokens, rank), out, inp, rank,
                                                   tokens, scale);
}

// ---- expansions -----------------------------------------------------------------------------------------------------

// A ROWS x COLS tile of [T, n], REPEATS of them one below the other for a block; lora.rs sizes grids by these. A thread
// has 2 x 2 quads of a tile. Up to rank 16 all of a weight's tile is there at once, and serves all repeats.
template <u32 THIN> struct Expansion {
    static constexpr u32 DEPTH = 16;
    static constexpr u32 ROWS = THIN == 16 ? 64 : 128, COLS = THIN == 16 ? 256 : 128, REPEATS = THIN == 16 ? 4 : 1;
    static constexpr u32 BLOCK_ROWS = ROWS * REPEATS, LANES_N = COLS / 8;
};

// to[t, i] += epilogue(sum over the rank of thin[t, k] weight[i, k])
template <u32 THIN, Layout WEIGHT_LAYOUT, typename T, typename Epilogue>
__device__ __forceinline__ void expand(const Operand<const float> &thin, const Operand<const float> &weight, u32 rank,
                                       const Operand<T> &to, Epilogue epilogue) {
    using E = Expansion<THIN>;
    constexpr u32 STEP_M = E::ROWS / 2, STEP_N = E::COLS / 2;
    __shared__ Tile<E::ROWS, E::DEPTH> rows;
    __shared__ Tile<E::COLS, E::DEPTH> cols;
    const u32 n0 = blockIdx.x * E::COLS, m = threadIdx.x / E::LANES_N * 4, n = threadIdx.x % E::LANES_N * 4;
    const u32 first = blockIdx.y * E::BLOCK_ROWS, end = min(first + E::BLOCK_ROWS, to.rows);
    for (u32 m0 = first; m0 < end; m0 += E::ROWS) {
        Sums<2, 2> sums;
        for (u32 k0 = 0; k0 < rank; k0 += E::DEPTH) {
            rows.template fill<Layout::ByRow>(thin, m0, k0);
            if (m0 == first || rank > E::DEPTH) cols.template fill<WEIGHT_LAYOUT>(weight, n0, k0);
            __syncthreads();
#pragma unroll 4
            for (u32 k = 0; k < E::DEPTH; ++k) sums.multiply(rows, cols, k, m, STEP_M, n, STEP_N);
            __syncthreads();
        }
#pragma unroll
        for (u32 i = 0; i < 8; ++i)
#pragma unroll
            for (u32 j = 0; j < 2; ++j) {
                const u32 row = m0 + m + i / 4 * STEP_M + i % 4, col = n0 + n + j * STEP_N;
                if (row >= to.rows || col >= to.cols) continue;
                const float *s = &sums.value[i][4 * j];
                const float4 add = epilogue(make_float4(s[0], s[1], s[2], s[3]), row, col), old = to.quad(row, col);
                to.put(row, col, make_float4(old.x + add.x, old.y + add.y, old.z + add.z, old.w + add.w));
            }
    }
}

// ---- entry points ---------------------------------------------------------------------------------------------------

#define DROPOUT_PARAMETERS                                                                                             \
    u32 key_low, u32 key_high, u32 threshold, float keep_scale, u32 module, const u32 *positions, const u32 *sequence, \
        const u32 *samples
#define DROPOUT {{key_low, key_high}, threshold, keep_scale, module, positions, sequence, samples}

// Grids of the contractions: (tiles of the wide side, stretches of K, tiles of the rank); THIN as the name says.
#define CONTRACTIONS(T, SUFFIX, THIN)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_down_##THIN##SUFFIX(                                 \
        const T *x, const float *a, float *out, u32 tokens, u32 inp, u32 rank, float scale, DROPOUT_PARAMETERS) {      \
        down<THIN>(x, a, out, tokens, inp, rank, scale, DROPOUT);                                                      \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_d_a_##THIN##SUFFIX(                                  \
        const T *x, const float *d_down, float *out, u32 tokens, u32 inp, u32 rank, float scale, DROPOUT_PARAMETERS) { \
        d_a<THIN>(x, d_down, out, tokens, inp, rank, scale, DROPOUT);                                                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_d_down_##THIN##SUFFIX(                               \
        const T *d_y, const float *b, float *out, u32 tokens, u32 outputs, u32 rank, float scale) {                    \
        contract<THIN, Layout::ByRow, Layout::ByK, false>(Operand<const T>(d_y, tokens, outputs),                      \
                                                          Operand<const float>(b, outputs, rank), out, tokens, rank,   \
                                                          outputs, scale);                                             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_d_b_##THIN##SUFFIX(                                  \
        const T *d_y, const float *saved_down, float *out, u32 tokens, u32 outputs, u32 rank, float scale) {           \
        contract<THIN, Layout::ByK, Layout::ByK, false>(Operand<const T>(d_y, tokens, outputs),                        \
                                                        Operand<const float>(saved_down, tokens, rank), out, outputs,  \
                                                        rank, tokens, scale);                                          \
    }

// Grids of the expansions: (tiles of the wide side, stretches of T); THIN as the name says.
#define EXPANSIONS(T, SUFFIX, THIN)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_up_##THIN##SUFFIX(                                   \
        const float *saved_down, const float *b, T *y, u32 tokens, u32 outputs, u32 rank, float scale) {               \
        expand<THIN, Layout::ByRow>(Operand<const float>(saved_down, tokens, rank),                                    \
                                    Operand<const float>(b, outputs, rank), rank, Operand<T>(y, tokens, outputs),      \
                                    [scale](float4 q, u32, u32) {                                                      \
                                        return make_float4(scale * q.x, scale * q.y, scale * q.z, scale * q.w);        \
                                    });                                                                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_d_x_##THIN##SUFFIX(                                  \
        const float *d_down, const float *a, T *d_x, u32 tokens, u32 inp, u32 rank, DROPOUT_PARAMETERS) {              \
        constexpr u32 ROWS = Expansion<THIN>::BLOCK_ROWS;                                                              \
        __shared__ uint2 ids[ROWS];                                                                                    \
        const Dropout dropout = DROPOUT;                                                                               \
        const RowMask<ROWS> mask(dropout, ids, blockIdx.y * ROWS, tokens);                                             \
        expand<THIN, Layout::ByK>(Operand<const float>(d_down, tokens, rank), Operand<const float>(a, rank, inp),      \
                                  rank, Operand<T>(d_x, tokens, inp),                                                  \
                                  [&mask](float4 q, u32 row, u32 col) { return mask.apply(q, row, col); });            \
    }

#define PRODUCTS(T, SUFFIX)                                                                                            \
    CONTRACTIONS(T, SUFFIX, 16)                                                                                        \
    CONTRACTIONS(T, SUFFIX, 64)                                                                                        \
    EXPANSIONS(T, SUFFIX, 16)                                                                                          \
    EXPANSIONS(T, SUFFIX, 64)

FOR_EACH_STORAGE(PRODUCTS)

// out = scale * the sum of `count` stretches of partial sums, each of `len` elements, from first to last.
extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_sum(const float *partial, float *out, u32 len, u32 count,
                                                               float scale) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= len) return;
    float sum = partial[i];
    for (u32 s = 1; s < count; ++s) sum += partial[u64(s) * len + i];
    out[i] = scale * sum;
}
