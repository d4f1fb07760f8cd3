// Gated activations of the MLP (Shazeer, "GLU variants improve transformer", 2002.05202): out = act(gate) * up.
//
// Bound by memory; each byte moves once. Forward reads 2 values an element and writes 1, about 20 operations; backward
// reads 3 and writes 2, about 30 operations.
#include "common.cuh"

constexpr u32 THREADS = 256;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Both activations are x * s(x); `slope` is the derivative of x * s(x).
struct Gate {
    float s;
    float slope;
};

// SiLU: s is the sigmoid.
struct Silu {
    static __device__ __forceinline__ Gate at(float x) {
        const float s = sigmoid(x);
        return {s, s * (1.0f + x * (1.0f - s))};
    }
};

// GELU in the tanh approximation: x / 2 * (1 + tanh u) = x * sigmoid(2 u), u = sqrt(2 / pi) * (x + 0.044715 x^3).
struct GeluTanh {
    static __device__ __forceinline__ Gate at(float x) {
        constexpr float SCALE = 0.7978846f, CUBIC = 0.044715f;
        constexpr float SATURATED = 12.0f; // The gate has long been 0 or 1 there; keeps the cubic finite.
        float near = x > SATURATED ? SATURATED : x;
        near = near < -SATURATED ? -SATURATED : near;
        const float square = near * near;
        const float s = sigmoid(2.0f * SCALE * near * (1.0f + CUBIC * square));
        const float twice_du = 2.0f * SCALE * (1.0f + 3.0f * CUBIC * square);
        return {s, s + x * (s * (1.0f - s)) * twice_du};
    }
};

template <typename A, typename T, u32 N>
__device__ __forceinline__ void forward_pack(const T *gate, const T *up, T *out) {
    Pack<N> result = load<N>(up);
    const Pack<N> g = load<N>(gate);
#pragma unroll
    for (u32 k = 0; k < N; ++k) result.value[k] *= g.value[k] * A::at(g.value[k]).s;
    store(out, result);
}

// d_up = d_out * act(gate), d_gate = d_out * up * act'(gate).
template <typename A, typename T, u32 N>
__device__ __forceinline__ void backward_pack(const T *d_out, const T *gate, const T *up, T *d_gate, T *d_up) {
    const Pack<N> d = load<N>(d_out), g = load<N>(gate), u = load<N>(up);
    Pack<N> to_gate, to_up;
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        const Gate at = A::at(g.value[k]);
        to_up.value[k] = d.value[k] * (g.value[k] * at.s);
        to_gate.value[k] = d.value[k] * u.value[k] * at.slope;
    }
    store(d_gate, to_gate);
    store(d_up, to_up);
}

// A thread a pack of 16 bytes; the last one takes what is left over.
template <typename A, typename T> __device__ __forceinline__ void forward(const T *gate, const T *up, T *out, u64 len) {
    const u64 i = (u64(blockIdx.x) * THREADS + threadIdx.x) * WIDTH<T>;
    if (i + WIDTH<T> <= len) {
        forward_pack<A, T, WIDTH<T>>(gate + i, up + i, out + i);
    } else {
        for (u64 k = i; k < len; ++k) forward_pack<A, T, 1>(gate + k, up + k, out + k);
    }
}

template <typename A, typename T>
__device__ __forceinline__ void backward(const T *d_out, const T *gate, const T *up, T *d_gate, T *d_up, u64 len) {
    const u64 i = (u64(blockIdx.x) * THREADS + threadIdx.x) * WIDTH<T>;
    if (i + WIDTH<T> <= len) {
        backward_pack<A, T, WIDTH<T>>(d_out + i, gate + i, up + i, d_gate + i, d_up + i);
    } else {
        for (u64 k = i; k < len; ++k) backward_pack<A, T, 1>(d_out + k, gate + k, up + k, d_gate + k, d_up + k);
    }
}

#define ENTRY_POINTS(NAME, A, T, SUFFIX)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME##_gate##SUFFIX(const T *gate, const T *up, T *out,     \
                                                                              u64 len) {                              \
        forward<A>(gate, up, out, len);                                                                               \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME##_gate_backward##SUFFIX(                               \
        const T *d_out, const T *gate, const T *up, T *d_gate, T *d_up, u64 len) {                                    \
        backward<A>(d_out, gate, up, d_gate, d_up, len);                                                              \
    }

#define KERNELS(T, SUFFIX)                                                                                            \
    ENTRY_POINTS(silu, Silu, T, SUFFIX)                                                                               \
    ENTRY_POINTS(gelu, GeluTanh, T, SUFFIX)

FOR_EACH_STORAGE(KERNELS)
