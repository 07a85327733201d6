// The end of a matrix product: eight neighbouring channels of one pixel, in float32, to the output's type.
//
//   value = sum [+ bias[channel]], then PROGRAM, a list of STEP(kind, arguments...) on `value` as in pointwise.cu;
//   ARGUMENT(0) is the residual at that place. Rounded once.
//
// Constants: OUT_TYPE, PROGRAM, BIAS and RESIDUAL (0 or 1), VECTORS (1: every eight channels that are stored exist, and
// lie at a multiple of 16 bytes in the output and in the residual).
#pragma once

#include "pointwise_steps.h"

#define STEP(kind, ...) value = apply_##kind(__VA_ARGS__);
#define ARGUMENT(k) residual[j]

// Eight biases from `channel` on; channels that do not exist have none.
TAMIS_DEVICE void load_bias(const float *bias, int channel, int channels, float (&values)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) values[j] = BIAS && channel + j < channels ? bias[channel + j] : 0.0f;
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

TAMIS_DEVICE void finish(const float (&sums)[8], const float (&bias)[8], const Eight &residuals, int count, OUT_TYPE *to) {
    constexpr int per_word = Convert<OUT_TYPE>::per_word;
    float results[8], residual[8];
    if constexpr (RESIDUAL)
#pragma unroll
        for (int i = 0; i < 8 / per_word; i++) Convert<OUT_TYPE>::unpack(residuals.words[i], residual + i * per_word);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float value = sums[j] + bias[j];
        PROGRAM
        results[j] = value;
    }
    if constexpr (VECTORS) {
        store<8>(to, results);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (j < count) to[j] = Convert<OUT_TYPE>::narrow(results[j]);
    }
}
