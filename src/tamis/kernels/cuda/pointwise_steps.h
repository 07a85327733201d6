// The kinds of pointwise steps, in float32: apply_<kind>(value[, operand or parameters]).
//
// The meaning is that of tamis.compiler.ir.evaluate_pointwise, NaN included: where NumPy hands NaN through
// (relu, clip, max, min, sign, leaky_relu, ...), so do these. The comparisons below are written for that.
// Where results are rounded to 16 bits or fewer (TAMIS_ROUNDED), activations that networks use most take fewer
// instructions: their error relative to the result is 9e-5 at most, a fifth of float16's rounding, and in `gelu` of
// results below 1e-4 up to 9e-9 absolute.
#pragma once

#include "element.h"

#ifndef TAMIS_ROUNDED
#define TAMIS_ROUNDED 0
#endif

// 2^x and a / b by one instruction of the special function unit each, to about 2 units in the last place of float32.
#ifdef TAMIS_EMULATED
TAMIS_DEVICE float quick_exp2(float x) { return exp2f(x); }
TAMIS_DEVICE float quick_ratio(float a, float b) { return a / b; }
#else
TAMIS_DEVICE float quick_exp2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
TAMIS_DEVICE float quick_ratio(float a, float b) { return __fdividef(a, b); }
#endif
#define TAMIS_LOG2_E 1.4426950408889634f

#define TAMIS_SELU_ALPHA 1.67326319217681884765625f
#define TAMIS_SELU_GAMMA 1.05070102214813232421875f

TAMIS_DEVICE float apply_max(float a, float b) { return a > b || a != a ? a : b; }
TAMIS_DEVICE float apply_min(float a, float b) { return a < b || a != a ? a : b; }
TAMIS_DEVICE float apply_clip(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}
TAMIS_DEVICE float apply_clip(float x, float low) { return x < low ? low : x; }
TAMIS_DEVICE float apply_clip(float x) { return x; }
// From Ampere on one instruction, which the conversion to 16 bits takes along; before, a comparison and a choice. Of -0
// it makes 0.
TAMIS_DEVICE float apply_relu(float x) {
#if !defined(TAMIS_EMULATED) && __CUDA_ARCH__ >= 800
    float result;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
    return result;
#else
    return x > 0.0f || x != x ? x : 0.0f;
#endif
}

TAMIS_DEVICE float apply_identity(float x) { return x; }
TAMIS_DEVICE float apply_abs(float x) { return fabsf(x); }
TAMIS_DEVICE float apply_neg(float x) { return -x; }
TAMIS_DEVICE float apply_sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }
TAMIS_DEVICE float apply_reciprocal(float x) { return 1.0f / x; }
TAMIS_DEVICE float apply_sqrt(float x) { return sqrtf(x); }
TAMIS_DEVICE float apply_exp(float x) { return expf(x); }
TAMIS_DEVICE float apply_log(float x) { return logf(x); }
TAMIS_DEVICE float apply_erf(float x) { return erff(x); }
TAMIS_DEVICE float apply_ceil(float x) { return ceilf(x); }
TAMIS_DEVICE float apply_floor(float x) { return floorf(x); }
TAMIS_DEVICE float apply_round(float x) { return rintf(x); }
TAMIS_DEVICE float apply_sin(float x) { return sinf(x); }
TAMIS_DEVICE float apply_cos(float x) { return cosf(x); }
TAMIS_DEVICE float apply_tan(float x) { return tanf(x); }
TAMIS_DEVICE float apply_asin(float x) { return asinf(x); }
TAMIS_DEVICE float apply_acos(float x) { return acosf(x); }
TAMIS_DEVICE float apply_atan(float x) { return atanf(x); }
TAMIS_DEVICE float apply_sinh(float x) { return sinhf(x); }
TAMIS_DEVICE float apply_cosh(float x) { return coshf(x); }
TAMIS_DEVICE float apply_tanh(float x) { return tanhf(x); }
TAMIS_DEVICE float apply_asinh(float x) { return asinhf(x); }
TAMIS_DEVICE float apply_acosh(float x) { return acoshf(x); }
TAMIS_DEVICE float apply_atanh(float x) { return atanhf(x); }

TAMIS_DEVICE float apply_sigmoid(float x) {
    if constexpr (TAMIS_ROUNDED) return quick_ratio(1.0f, 1.0f + quick_exp2(-TAMIS_LOG2_E * x));
    return 1.0f / (1.0f + expf(-x));
}
TAMIS_DEVICE float apply_silu(float x) { return x * apply_sigmoid(x); }
TAMIS_DEVICE float apply_gelu(float x) {
    if constexpr (!TAMIS_ROUNDED) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    // The share of the normal distribution below -|x| is 2^p(|x|): p fitted to the smallest relative error of the result,
    // with leading terms that fall beyond.
    const float a = fabsf(x);
    float p = -3.28461523167789e-4f;
    p = fmaf(p, a, 5.902598612010479e-3f);
    p = fmaf(p, a, -4.847915843129158e-2f);
    p = fmaf(p, a, -4.6382245421409607e-1f);
    p = fmaf(p, a, -1.1492831707000732f);
    p = fmaf(p, a, -1.0001243352890015f);
    const float below = quick_exp2(p);
    return x * (x < 0.0f ? below : 1.0f - below);
}
TAMIS_DEVICE float apply_gelu_tanh(float x) {
    if constexpr (TAMIS_ROUNDED)  // 0.5 (1 + tanh(u)) is the sigmoid of 2 u
        return x * apply_sigmoid(x * fmaf(x * x, 2 * 0.79788456080286536f * 0.044715f, 2 * 0.79788456080286536f));
    return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}
TAMIS_DEVICE float apply_softplus(float x) { return apply_relu(x) + log1pf(expf(-fabsf(x))); }
TAMIS_DEVICE float apply_mish(float x) {
    if constexpr (!TAMIS_ROUNDED) return x * tanhf(apply_softplus(x));
    // tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2); beyond 20 it is one.
    const float e = quick_exp2(TAMIS_LOG2_E * (x < 20.0f ? x : 20.0f)), n = e * (e + 2.0f);
    return x * quick_ratio(n, n + 2.0f);
}
TAMIS_DEVICE float apply_softsign(float x) { return x / (1.0f + fabsf(x)); }
TAMIS_DEVICE float apply_hardsigmoid(float x, float alpha = 0.2f, float beta = 0.5f) {
    return apply_clip(alpha * x + beta, 0.0f, 1.0f);
}
TAMIS_DEVICE float apply_hardswish(float x) { return x * apply_hardsigmoid(x, 0.16666667f, 0.5f); }
TAMIS_DEVICE float apply_leaky_relu(float x, float alpha = 0.01f) { return x < 0.0f ? alpha * x : x; }
TAMIS_DEVICE float apply_thresholded_relu(float x, float alpha = 1.0f) { return x <= alpha ? 0.0f : x; }
TAMIS_DEVICE float apply_elu(float x, float alpha = 1.0f) { return x > 0.0f ? x : alpha * expm1f(x); }
TAMIS_DEVICE float apply_selu(float x, float alpha = TAMIS_SELU_ALPHA, float gamma = TAMIS_SELU_GAMMA) {
    return gamma * apply_elu(x, alpha);
}
TAMIS_DEVICE float apply_celu(float x, float alpha = 1.0f) {
    return apply_relu(x) + alpha * expm1f(apply_min(x, 0.0f) / alpha);
}

TAMIS_DEVICE float apply_add(float a, float b) { return a + b; }
TAMIS_DEVICE float apply_sub(float a, float b) { return a - b; }
TAMIS_DEVICE float apply_mul(float a, float b) { return a * b; }
TAMIS_DEVICE float apply_div(float a, float b) { return a / b; }
TAMIS_DEVICE float apply_pow(float a, float b) { return powf(a, b); }
TAMIS_DEVICE float apply_fmod(float a, float b) { return fmodf(a, b); }
// The remainder with the sign of the divisor, as Python's.
TAMIS_DEVICE float apply_mod(float a, float b) {
    const float rest = fmodf(a, b);
    if (rest == 0.0f) return copysignf(0.0f, b);
    return (rest < 0.0f) != (b < 0.0f) ? rest + b : rest;
}
TAMIS_DEVICE float apply_prelu(float x, float slope) { return x < 0.0f ? slope * x : x; }
