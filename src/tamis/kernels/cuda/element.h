// Element types and vector access, without any header of the CUDA toolkit.
//
// All arithmetic is float32. `float16`, `bfloat16` and `float8_e4m3` are bit patterns; conversions round to nearest
// even. Those to `int8` and `float8_e4m3` saturate as ONNX QuantizeLinear does, to [-128, 127] and to +-448; NaN is 0
// as an integer. Before sm_89 there is no `float8_e4m3`.
// load<V>(p, values) and store<V>(p, values) move V elements between memory and float registers, 16 bytes an
// instruction where V elements fill them; p must be aligned to min(16, V * sizeof(T)) bytes.
#pragma once

struct float16 {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};
struct int8 {
    signed char value;
};
struct float8_e4m3 {
    unsigned char bits;
};

#define TAMIS_DEVICE static __device__ __forceinline__
#define TAMIS_INFINITY __int_as_float(0x7f800000)
#define TAMIS_NAN __int_as_float(0x7fc00000)

#ifdef TAMIS_EMULATED
TAMIS_DEVICE float half_to_float(unsigned short bits) { return emulated_half_to_float(bits); }
TAMIS_DEVICE unsigned short float_to_half(float x) { return emulated_float_to_half(x); }
TAMIS_DEVICE unsigned short float_to_bfloat(float x) { return emulated_float_to_bfloat(x); }
TAMIS_DEVICE int float_to_int(float x) { return emulated_float_to_int(x); }
TAMIS_DEVICE unsigned pack_saturated(int high, int low, unsigned before) {
    return before << 16 | emulated_saturated(high) << 8 | emulated_saturated(low);
}
TAMIS_DEVICE unsigned floats_to_e4m3(float high, float low) {
    return emulated_float_to_e4m3(high) << 8 | emulated_float_to_e4m3(low);
}
TAMIS_DEVICE void e4m3_to_floats(unsigned short pair, float *values) {
    values[0] = emulated_e4m3_to_float(pair & 0xff), values[1] = emulated_e4m3_to_float(pair >> 8);
}
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
// To the nearest of all ints, ties to even; NaN is 0.
TAMIS_DEVICE int float_to_int(float x) {
    int integer;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(integer) : "f"(x));
    return integer;
}
// Two ints as saturated bytes, behind the 16 bits of `before`, which move up.
TAMIS_DEVICE unsigned pack_saturated(int high, int low, unsigned before) {
    unsigned word;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(high), "r"(low), "r"(before));
    return word;
}
// Two floats as saturated e4m3.
TAMIS_DEVICE unsigned floats_to_e4m3(float high, float low) {
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}
TAMIS_DEVICE void e4m3_to_floats(unsigned short pair, float *values) {
    unsigned halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
    values[0] = half_to_float((unsigned short)halves), values[1] = half_to_float((unsigned short)(halves >> 16));
}
#endif

TAMIS_DEVICE float to_float(float x) { return x; }
TAMIS_DEVICE float to_float(float16 x) { return half_to_float(x.bits); }
TAMIS_DEVICE float to_float(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
TAMIS_DEVICE float to_float(int8 x) { return (float)x.value; }
TAMIS_DEVICE float to_float(float8_e4m3 x) {
    float pair[2];
    e4m3_to_floats(x.bits, pair);
    return pair[0];
}

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
template <> struct Convert<int> {  // sums; nothing is stored as such
    static constexpr int per_word = 1;
    static __device__ __forceinline__ void unpack(unsigned word, float *values) { values[0] = (float)(int)word; }
};
template <> struct Convert<int8> {
    static constexpr int per_word = 4;
    static __device__ __forceinline__ int8 narrow(float x) {
        return {(signed char)pack_saturated(0, float_to_int(x), 0)};
    }
    static __device__ __forceinline__ void unpack(unsigned word, float *values) {
#pragma unroll
        for (int i = 0; i < 4; i++) values[i] = (float)(signed char)(word >> 8 * i);
    }
    static __device__ __forceinline__ unsigned pack(const float *values) {
        const unsigned upper = pack_saturated(float_to_int(values[3]), float_to_int(values[2]), 0);
        return pack_saturated(float_to_int(values[1]), float_to_int(values[0]), upper);
    }
};
template <> struct Convert<float8_e4m3> {
    static constexpr int per_word = 4;
    static __device__ __forceinline__ float8_e4m3 narrow(float x) { return {(unsigned char)floats_to_e4m3(0.0f, x)}; }
    static __device__ __forceinline__ void unpack(unsigned word, float *values) {
        e4m3_to_floats((unsigned short)word, values);
        e4m3_to_floats((unsigned short)(word >> 16), values + 2);
    }
    static __device__ __forceinline__ unsigned pack(const float *values) {
        return floats_to_e4m3(values[1], values[0]) | floats_to_e4m3(values[3], values[2]) << 16;
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
