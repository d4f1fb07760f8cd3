// Gradients to fixed point and back, and the two reductions over flat vectors.
//
//   fixed_accumulate    sums += round(gradient * 2^exponent)                     4 + 16 bytes an element
//   fixed_to_gradient   gradient = sums * 2^-exponent / divisor                  8 + 4
//   fixed_max_abs       the largest magnitude of each segment                    4
//   fixed_squares       sums of squares of stretches                             4
//
// All are limited by memory: a few f64 operations an element. Every value is exact, or rounded once as IEEE 754 says,
// in an order that is part of the definition: the bits are those of the CPU backend.
//
// A segment is cut into pieces, one block each: {start, elements, exponent, number of the segment}. Sums may be those of a
// bucket of segments alone: they begin with element `first`.

#include "common.cuh"

constexpr u32 THREADS = 256;
constexpr long long FLAG_NOT_FINITE = 0x7fffffffffffffffLL;

// 2^exponent, exactly; the host admits only exponents whose powers are normal.
__device__ __forceinline__ double power_of_two(int exponent) {
    return __longlong_as_double(static_cast<long long>(exponent + 1023) << 52);
}

// By how many powers of two a magnitude exceeds 2^limit_bits once rounded.
__device__ __forceinline__ long long flag_of(double largest, u32 limit_bits) {
    if (isinf(largest)) return FLAG_NOT_FINITE;
    if (rint(largest) <= power_of_two(limit_bits)) return 0;
    // The exponent of the next power of two not below `largest`, which is a normal number here.
    const long long bits = __double_as_longlong(largest), fraction = (1LL << 52) - 1;
    const long long floor = (bits >> 52) - 1023;
    return floor + ((bits & fraction) != 0) - limit_bits;
}

// `sums` of a flagged segment are unspecified: a value that no i64 holds is saturated.
extern "C" __global__ void __launch_bounds__(THREADS) fixed_accumulate(const float *gradient, const uint4 *pieces,
                                                                       u32 limit_bits, u64 first, long long *sums,
                                                                       long long *flags) {
    const uint4 piece = pieces[blockIdx.x];
    const double scale = power_of_two(static_cast<int>(piece.z)); // A power of two: the product is exact.
    double largest = 0.0;
    for (u32 i = threadIdx.x; i < piece.y; i += THREADS) {
        const u64 at = u64(piece.x) + i;
        const double value = gradient[at] * scale;
        largest = fmax(largest, isnan(value) ? INFINITY : fabs(value));
        const u64 rounded = static_cast<u64>(__double2ll_rn(value));
        long long &sum = sums[at - first];
        sum = static_cast<long long>(static_cast<u64>(sum) + rounded);
    }
    largest = block_max<THREADS>(largest);
    if (threadIdx.x != 0) return;
    const long long flag = flag_of(largest, limit_bits);
    if (flag > 0) atomicMax(&flags[piece.w], flag);
}

extern "C" __global__ void __launch_bounds__(THREADS) fixed_to_gradient(const long long *sums, const uint4 *pieces,
                                                                        u64 first, double divisor, float *gradient) {
    const uint4 piece = pieces[blockIdx.x];
    const double scale = power_of_two(-static_cast<int>(piece.z));
    for (u32 i = threadIdx.x; i < piece.y; i += THREADS) {
        const u64 at = u64(piece.x) + i;
        gradient[at] = __double2float_rn(__ddiv_rn(__dmul_rn(__ll2double_rn(sums[at - first]), scale), divisor));
    }
}

// Into zeros. Magnitudes order as their bits do, and a NaN counts as infinite.
extern "C" __global__ void __launch_bounds__(THREADS) fixed_max_abs(const float *vector, const uint4 *pieces,
                                                                    u32 *largest_bits) {
    const uint4 piece = pieces[blockIdx.x];
    float largest = 0.0f;
    for (u32 i = threadIdx.x; i < piece.y; i += THREADS) {
        const float value = vector[u64(piece.x) + i];
        largest = fmaxf(largest, isnan(value) ? INFINITY : fabsf(value));
    }
    largest = block_max<THREADS>(largest);
    if (threadIdx.x == 0) atomicMax(&largest_bits[piece.w], __float_as_uint(largest));
}

// Sixteen neighbouring lanes take a stretch: lane l adds the squares of elements l, l + 16, ..., then the lanes' sums
// are added from first to last. The square of an f32 is exact in f64.
constexpr u32 LANES = 16;

extern "C" __global__ void __launch_bounds__(THREADS) fixed_squares(const float *vector, u64 len, u32 stretch,
                                                                    double *sums) {
    const u32 number = (blockIdx.x * THREADS + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
    const u64 start = min(u64(number) * stretch, len), end = min(start + stretch, len);
    double sum = 0.0;
#pragma unroll 8
    for (u64 i = start + lane; i < end; i += LANES) {
        const double value = vector[i];
        sum = __fma_rn(value, value, sum);
    }
    double total = 0.0;
#pragma unroll
    for (u32 l = 0; l < LANES; ++l) total += __shfl_sync(ALL_LANES, sum, l, LANES);
    if (lane == 0 && start < end) sums[number] = total;
}
