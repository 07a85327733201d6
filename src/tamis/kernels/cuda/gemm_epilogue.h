// The end of a matrix product: eight neighbouring channels of one pixel, in float32, to the output's type.
//
//   value = sum [+ bias[channel]], then PROGRAM, a list of STEP(kind, arguments...) on `value` as in pointwise.cu;
//   ARGUMENT(0) is the residual at that place. Rounded once.
//   SCALED: value = fma(float(sum), scale[channel], bias[channel] or 0) and ARGUMENT(0) = residual * residual_factor;
//   if the output has 8 bits it is value * out_factor, rounded. These numbers come with the biases, so that layers of
//   all scales share one binary: out_factor, residual_factor, two that are not used, then the scales, then the biases.
//
// Constants: OUT_TYPE, PROGRAM, BIAS, SCALED and RESIDUAL (0 or 1), VECTORS (1: every eight channels that are stored
// exist, and lie at a multiple of eight elements in the output and in the residual).
#pragma once

#define TAMIS_ROUNDED (sizeof(OUT_TYPE) < 4)
#include "pointwise_steps.h"

#define STEP(kind, ...) value = apply_##kind(__VA_ARGS__);
#define ARGUMENT(k) residual[j]

// What is added to the sums of eight channels, and what they and others are multiplied with if SCALED.
struct Channels {
    float bias[8], scale[8], out_factor, residual_factor;
};

// Eight channels from `channel` on; those that do not exist have no bias and no scale.
TAMIS_DEVICE void load_channels(const float *bias, int channel, int channels, Channels &to) {
    if constexpr (SCALED) {
        to.out_factor = bias[0], to.residual_factor = bias[1];
        bias += 4;
#pragma unroll
        for (int j = 0; j < 8; j++) to.scale[j] = channel + j < channels ? bias[channel + j] : 0.0f;
        bias += channels;
    }
#pragma unroll
    for (int j = 0; j < 8; j++) to.bias[j] = BIAS && channel + j < channels ? bias[channel + j] : 0.0f;
}

// Eight neighbouring values of the output's type, as they lie in memory.
struct Eight {
    unsigned words[8 / Convert<OUT_TYPE>::per_word];
};

// The residual of eight channels; `count` of them exist.
TAMIS_DEVICE void load_residual(const OUT_TYPE *from, int count, Eight &values) {
    constexpr int per_word = Convert<OUT_TYPE>::per_word;
    if constexpr (VECTORS) {
        load_words<8 / per_word>(reinterpret_cast<const unsigned *>(from), values.words);
    } else {
        float each[8];
#pragma unroll
        for (int j = 0; j < 8; j++) each[j] = j < count ? to_float(from[j]) : 0.0f;
#pragma unroll
        for (int i = 0; i < 8 / per_word; i++) values.words[i] = Convert<OUT_TYPE>::pack(each + i * per_word);
    }
}

// One value, of a sum with its bias.
TAMIS_DEVICE float finished(float value, float own) {
    const float residual[1] = {own};
    constexpr int j = 0;
    PROGRAM
    (void)residual, (void)j;
    return value;
}

TAMIS_DEVICE void finish(const float (&sums)[8], const Channels &channels, const Eight &residuals, int count,
                         OUT_TYPE *to) {
    constexpr int per_word = Convert<OUT_TYPE>::per_word;
    float results[8], residual[8];
    if constexpr (RESIDUAL)
#pragma unroll
        for (int i = 0; i < 8 / per_word; i++) Convert<OUT_TYPE>::unpack(residuals.words[i], residual + i * per_word);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float value = SCALED ? fmaf(sums[j], channels.scale[j], channels.bias[j]) : sums[j] + channels.bias[j];
        if constexpr (SCALED && RESIDUAL) residual[j] *= channels.residual_factor;
        PROGRAM
        results[j] = SCALED && sizeof(OUT_TYPE) == 1 ? value * channels.out_factor : value;
    }
    if constexpr (VECTORS) {
        store<8>(to, results);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (j < count) to[j] = Convert<OUT_TYPE>::narrow(results[j]);
    }
}
