// Element types and vector access, without any header of the CUDA toolkit.
//
// All arithmetic is float32. `float16` and `bfloat16` are bit patterns; conversions round to nearest even.
// load<V>(p, values) and store<V>(p, values) move V elements between memory and float registers, 16 bytes an
// instruction where V elements fill them; p must be aligned to min(16, V * sizeof(T)) bytes.
#pragma once

struct float16 {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

#define TAMIS_DEVICE static __device__ __forceinline__
#define TAMIS_INFINITY __int_as_float(0x7f800000)
#define TAMIS_NAN __int_as_float(0x7fc00000)

#ifdef TAMIS_EMULATED
TAMIS_DEVICE float half_to_float(unsigned short bits) { return emulated_half_to_float(bits); }
TAMIS_DEVICE unsigned short float_to_half(float x) { return emulated_float_to_half(x); }
TAMIS_DEVICE unsigned short float_to_bfloat(float x) { return emulated_float_to_bfloat(x); }
#else
TAMIS_DEVICE float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
TAMIS_DEVICE unsigned short float_to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
TAMIS_DEVICE unsigned short float_to_bfloat(float x) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#endif

TAMIS_DEVICE float to_float(float x) { return x; }
TAMIS_DEVICE float to_float(float16 x) { return half_to_float(x.bits); }
TAMIS_DEVICE float to_float(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }

template <class T> struct Convert;
template <> struct Convert<float> {
    static constexpr int per_word = 1;
    static __device__ __forceinline__ float narrow(float x) { return x; }
    static __device__ __forceinline__ void unpack(unsigned word, float *values) { values[0] = __uint_as_float(word); }
    static __device__ __forceinline__ unsigned pack(const float *values) { return __float_as_uint(values[0]); }
};
template <> struct Convert<float16> {
    static constexpr int per_word = 2;
    static __device__ __forceinline__ float16 narrow(float x) { return {float_to_half(x)}; }
    static __device__ __forceinline__ void unpack(unsigned word, float *values) {
        values[0] = half_to_float((unsigned short)word);
        values[1] = half_to_float((unsigned short)(word >> 16));
    }
    static __device__ __forceinline__ unsigned pack(const float *values) {
        return float_to_half(values[0]) | (unsigned)float_to_half(values[1]) << 16;
    }
};
template <> struct Convert<bfloat16> {
    static constexpr int per_word = 2;
    static __device__ __forceinline__ bfloat16 narrow(float x) { return {float_to_bfloat(x)}; }
    static __device__ __forceinline__ void unpack(unsigned word, float *values) {
        values[0] = __uint_as_float(word << 16);
        values[1] = __uint_as_float(word & 0xffff0000u);
    }
    static __device__ __forceinline__ unsigned pack(const float *values) {
        return float_to_bfloat(values[0]) | (unsigned)float_to_bfloat(values[1]) << 16;
    }
};

struct alignas(16) FourWords {
    unsigned x, y, z, w;
};
struct alignas(8) TwoWords {
    unsigned x, y;
};

template <int N> TAMIS_DEVICE void load_words(const unsigned *from, unsigned *to) {
    if constexpr (N >= 4) {
        const FourWords four = *reinterpret_cast<const FourWords *>(from);
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
        if constexpr (N > 4) load_words<N - 4>(from + 4, to + 4);
    } else if constexpr (N == 2) {
        const TwoWords two = *reinterpret_cast<const TwoWords *>(from);
        to[0] = two.x, to[1] = two.y;
    } else {
        static_assert(N == 1, "a vector has 1, 2 or a multiple of 4 words");
        to[0] = *from;
    }
}

template <int N> TAMIS_DEVICE void store_words(unsigned *to, const unsigned *from) {
    if constexpr (N >= 4) {
        *reinterpret_cast<FourWords *>(to) = {from[0], from[1], from[2], from[3]};
        if constexpr (N > 4) store_words<N - 4>(to + 4, from + 4);
    } else if constexpr (N == 2) {
        *reinterpret_cast<TwoWords *>(to) = {from[0], from[1]};
    } else {
        static_assert(N == 1, "a vector has 1, 2 or a multiple of 4 words");
        *to = from[0];
    }
}

template <int V, class T> TAMIS_DEVICE void load(const T *from, float (&values)[V]) {
    constexpr int per_word = Convert<T>::per_word;
    if constexpr (V % per_word) {
#pragma unroll
        for (int i = 0; i < V; i++) values[i] = to_float(from[i]);
    } else {
        unsigned words[V / per_word];
        load_words<V / per_word>(reinterpret_cast<const unsigned *>(from), words);
#pragma unroll
        for (int i = 0; i < V / per_word; i++) Convert<T>::unpack(words[i], values + i * per_word);
    }
}

template <int V, class T> TAMIS_DEVICE void store(T *to, const float (&values)[V]) {
    constexpr int per_word = Convert<T>::per_word;
    if constexpr (V % per_word) {
#pragma unroll
        for (int i = 0; i < V; i++) to[i] = Convert<T>::narrow(values[i]);
    } else {
        unsigned words[V / per_word];
#pragma unroll
        for (int i = 0; i < V / per_word; i++) words[i] = Convert<T>::pack(values + i * per_word);
        store_words<V / per_word>(reinterpret_cast<unsigned *>(to), words);
    }
}
