/* Activations, as plain loops that the compiler turns into vectors of whatever width the file is built for.
 *
 * No branch, no table, no library call. Errors against float64 over the whole float32 range: at most 1e-6
 * relative, plus what a relative change of the input by 2e-7 would make (tests/kernels/test_cpu_activations.py);
 * the latter only counts in the far tails and at the zeros. NaN goes in and comes out; infinities follow the formula as written
 * (so silu(-inf) = -inf * 0 = NaN, like the formula and like PyTorch).
 */
#ifndef TAMIS_ACTIVATION_H
#define TAMIS_ACTIVATION_H

#include "internal.h"

namespace {

inline uint32_t bits_of(float x) {
    uint32_t u;
    __builtin_memcpy(&u, &x, 4);
    return u;
}

inline float float_of(uint32_t u) {
    float x;
    __builtin_memcpy(&x, &u, 4);
    return x;
}

inline float magnitude(float x) { return float_of(bits_of(x) & 0x7fffffffu); }

/* exp(x) = 2^n exp(r), |r| <= ln(2)/2: n by the rounding that adding 1.5 * 2^23 does, exp(r) by a minimax
 * polynomial (2e-9), 2^n in two factors so that results near overflow and denormal ones come out right. */
inline float exponential(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float magic = 12582912.0f;
    float shifted = x * 1.44269504f + magic;
    float n = shifted - magic;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 0.00138357857f;
    p = p * r + 0.00837564494f;
    p = p * r + 0.0416682890f;
    p = p * r + 0.166664102f;
    p = p * r + 0.499999916f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t exponent = (int32_t)bits_of(shifted) - 0x4b400000;
    int32_t half = exponent >> 1;
    return p * float_of((uint32_t)(half + 127) << 23) * float_of((uint32_t)(exponent - half + 127) << 23);
}

/* Through exp(-|x|), which cannot overflow. */
inline float sigmoid(float x) {
    float e = exponential(-magnitude(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* tanh: a polynomial near zero (where the quotient cancels), (1 - e) / (1 + e) with e = exp(-2|x|) elsewhere. */
inline float hyperbolic_tangent(float x) {
    float a = magnitude(x);
    float e = exponential(-2.0f * a);
    float far = (1.0f - e) / (1.0f + e);
    far = float_of(bits_of(far) | (bits_of(x) & 0x80000000u));
    float z = x * x;
    float p = -0.00566075f;
    p = p * z + 0.02060197f;
    p = p * z - 0.05372922f;
    p = p * z + 0.13331329f;
    p = p * z - 0.33333278f;
    float near = x + x * z * p;
    return a < 0.625f ? near : far;
}

/* Upper tail of the normal distribution at a >= 0: exp(-a^2 / 2) P(t), t = 1 / (1 + 0.3 a); P is a minimax fit
 * (3e-9) of exp(a^2 / 2) (1 - Phi(a)) up to a = 14.6, beyond which the tail is below float32. a^2 is split
 * into an exact part and a small one, for an error in the exponent becomes a relative error of the result. */
inline float normal_tail(float a) {
    a = a > 14.6f ? 14.6f : a;
    float high = float_of(bits_of(a) & 0xfffff000u);
    float low = (a - high) * (a + high);
    float t = 1.0f / (1.0f + 0.3f * a);
    float p = -2.005231662e-02f;
    p = p * t + 1.090830331e-01f;
    p = p * t - 2.195883509e-01f;
    p = p * t + 1.790027470e-01f;
    p = p * t - 6.736670988e-02f;
    p = p * t + 8.860894680e-02f;
    p = p * t + 8.155878231e-02f;
    p = p * t + 1.093559748e-01f;
    p = p * t + 1.197259145e-01f;
    p = p * t + 1.196713145e-01f;
    p = p * t + 6.628021042e-07f;
    return exponential(-0.5f * high * high) * exponential(-0.5f * low) * p;
}

inline float gelu(float x) {
    float tail = normal_tail(magnitude(x));
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

/* 0.5 (1 + tanh(u)) = sigmoid(2u), which does not cancel. */
inline float gelu_tanh(float x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

#define TAMIS_EACH(expression)                \
    for (int64_t i = 0; i < count; i++) {     \
        float y = v[i];                       \
        v[i] = (expression);                  \
    }                                         \
    break

inline void activate(const tamis_epilogue *step, float *__restrict v, int64_t count) {
    const float p0 = step->p0, p1 = step->p1;
    switch (step->kind) {
        case TAMIS_RELU: TAMIS_EACH(y < 0.0f ? 0.0f : y);
        case TAMIS_CLIP: TAMIS_EACH((y = y < p0 ? p0 : y, y > p1 ? p1 : y));
        case TAMIS_SILU: TAMIS_EACH(y * sigmoid(y));
        case TAMIS_HARDSWISH:
            TAMIS_EACH(y * (y / 6.0f + 0.5f < 0.0f ? 0.0f : y / 6.0f + 0.5f > 1.0f ? 1.0f : y / 6.0f + 0.5f));
        case TAMIS_GELU: TAMIS_EACH(gelu(y));
        case TAMIS_GELU_TANH: TAMIS_EACH(gelu_tanh(y));
        case TAMIS_SIGMOID: TAMIS_EACH(sigmoid(y));
        case TAMIS_LEAKY_RELU: TAMIS_EACH(y < 0.0f ? p0 * y : y);
        case TAMIS_TANH: TAMIS_EACH(hyperbolic_tangent(y));
        default: break;
    }
}

#undef TAMIS_EACH

}  // namespace
#endif
