// CUDA C++ on the CPU, enough of it to run our kernels thread by thread.
//
// A block's threads are fibres on one core, switched only where they wait: at __syncthreads (all threads of the block),
// in a warp shuffle (the 32 lanes), at a barrier of some threads, and for a condition. Clusters of blocks run one
// after the other, the blocks of a cluster (one if nothing is said) together. Wrong programs are found out: a thread that
// leaves while others wait at a barrier, a shuffle with lanes missing, a misaligned or outside access (through the
// caller's guard pages and the compiler's alignment checks), or one before the kernel in front has finished, end the
// launch with a code and not the process.
//
// Kernels are compiled one by one, and quickly, without optimisation. What they call lies in one library, compiled
// once and optimised (*_emulated.cpp): so the headers that kernels see declare, and hold what depends on a kernel's
// constants.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#define TAMIS_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__

struct EmulatedIndex {
    unsigned x, y, z;
};
extern EmulatedIndex gridDim, blockDim, blockIdx, threadIdx;

template <class To, class From> inline To emulated_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned bits) { return emulated_bits<float>(bits); }
inline float __int_as_float(int bits) { return emulated_bits<float>(bits); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
// Four bytes of eight, each named by a nibble of the selector.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)b << 32 | a;
    unsigned word = 0;
    for (int i = 0; i < 4; i++) word |= (unsigned)(bytes >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
    return word;
}

extern float emulated_halves[1 << 16];  // the values of all bit patterns
inline float emulated_half_to_float(unsigned short bits) { return emulated_halves[bits]; }
unsigned short emulated_float_to_half(float x);
inline unsigned short emulated_float_to_bfloat(float x) {
    const unsigned bits = emulated_bits<unsigned>(x);
    if (x != x) return 0x7fff;
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline int emulated_float_to_int(float x) {
    if (x != x) return 0;
    if (fabsf(x) >= 2147483648.0f) return x < 0 ? -2147483647 - 1 : 2147483647;
    return (int)nearbyintf(x);
}
inline unsigned emulated_saturated(int x) { return (unsigned char)(x < -128 ? -128 : x > 127 ? 127 : x); }
// e4m3: four bits of exponent with bias 7, three of mantissa; no infinity, and NaN where all seven are ones.
inline float emulated_e4m3_to_float(unsigned bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const float size = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    if ((bits & 127) == 127) return __uint_as_float(0x7fc00000);
    return bits & 128 ? -size : size;
}
// To the nearest, ties to even; what is larger than 448 becomes 448.
inline unsigned emulated_float_to_e4m3(float x) {
    const unsigned sign = emulated_bits<unsigned>(x) >> 24 & 128;
    if (x != x) return 127;
    if (fabsf(x) >= 448.0f) return sign | 126;
    if (x == 0.0f) return sign;
    int exponent;
    frexpf(x, &exponent);
    const int unit = exponent - 4 < -9 ? -9 : exponent - 4;  // the power of two of the last bit
    const int count = (int)nearbyintf(ldexpf(fabsf(x), -unit));
    // Units of 16 are the next exponent, and units below eight subnormal: both come out by adding.
    return sign | (unsigned)(count + (unit + 9) * 8);
}

void __syncthreads();
float __shfl_xor_sync(unsigned, float value, int mask);
unsigned __shfl_sync(unsigned, unsigned value, int lane);
void emulated_previous_finished();

// What a kernel's library tells of itself.
struct EmulatedUnit {
    unsigned cluster;    // blocks that run together
    bool shared_memory;  // whether it is the launch that gives it
    bool late;           // whether work that is waited for was done late in the cluster before
};
static EmulatedUnit emulated_unit = {1, false, false};

extern void **emulated_arguments;
template <class... A, size_t... I>
inline void emulated_call(void (*kernel)(A...), std::index_sequence<I...>) {
    kernel(*static_cast<A *>(emulated_arguments[I])...);
}
template <class... A> inline void emulated_call(void (*kernel)(A...)) {
    emulated_call(kernel, std::index_sequence_for<A...>());
}
int emulated_launch(EmulatedUnit &unit, void (*body)(), const unsigned *grid, const unsigned *block, void **arguments);

// The entry that the test calls; after the kernel's source.
#define EMULATED_KERNEL(name)                                                                            \
    static void emulated_body_##name() { emulated_call(name); }                                          \
    extern "C" int emulated_run(const unsigned *grid, const unsigned *block, void **arguments) {         \
        return emulated_launch(emulated_unit, emulated_body_##name, grid, block, arguments);             \
    }
