// Layer normalisation and root mean square normalisation of rows, with an addition in front.
//
// Mathematics: s = x + residual; out = (s - mean(s)) / sqrt(mean((s - mean(s))^2) + EPSILON) * scale + bias for each row.
//   With RMS the mean stays in: out = s / sqrt(mean(s^2) + EPSILON) * scale + bias. All in float32, the variance in a
//   second walk over the centred values; `sum` receives s.
// Layouts: x, residual, out, sum: dense [rows, COLUMNS] of TYPE; scale, bias: float32 [COLUMNS]. residual, scale, bias
//   and sum may be null; HAS_RESIDUAL, HAS_SCALE, HAS_BIAS and HAS_SUM say so. See rows.h for who does what. A row's
//   threads take ROWS_EACH rows, one after the other, and keep scale and bias, which are twice as many bytes as a row.
// Limits: fewer than 2^31 elements, addresses aligned to 16 bytes.
// Roof: memory. bytes of x, residual, out and sum over the bandwidth. Measured on an H100 (3.35 TB/s nominal):
//   0.63 of it for BERT's rows of 768 in float16, 0.67 with a residual.
//
// Constants: TYPE, COLUMNS, WIDTH, WARPS, CACHED, ROWS_EACH, RMS, EPSILON, HAS_RESIDUAL, HAS_SCALE, HAS_BIAS, HAS_SUM.
#include "overlap.h"
#include "rows.h"

extern "C" __global__ void __launch_bounds__(ROW_THREADS * (WARPS == 1 ? 4 : 1))
    layer_norm(void *out, void *sum, const void *x, const void *residual, const float *scale, const float *bias,
               unsigned rows) {
    next_may_start();
    const unsigned first = (blockIdx.x * blockDim.y + threadIdx.y) * ROWS_EACH;
    [[maybe_unused]] float scales[KEPT][WIDTH], biases[KEPT][WIDTH];
    auto fetch_factors = [&](unsigned k, unsigned column) {
#if HAS_SCALE
        load<WIDTH>(scale + column, scales[k]);
#endif
#if HAS_BIAS
        load<WIDTH>(bias + column, biases[k]);
#endif
    };
    if (CACHED) each_vector(fetch_factors);  // constants need not wait for the kernel before
    previous_finished();

    for (unsigned row = first; row < first + ROWS_EACH && row < rows; row++) {
        const unsigned start = row * COLUMNS;
        const TYPE *from = (const TYPE *)x + start, *more = (const TYPE *)residual + start;

        float kept[KEPT][WIDTH];
        auto fetch = [&](float (&values)[WIDTH], unsigned column) {
            load<WIDTH>(from + column, values);
#if HAS_RESIDUAL
            float others[WIDTH];
            load<WIDTH>(more + column, others);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) values[j] += others[j];
#endif
        };

        float total = 0.0f;
        each_vector([&](unsigned k, unsigned column) {
            fetch(kept[k], column);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) total += kept[k][j];
        });
        const float mean = RMS ? 0.0f : reduce_row<Sum>(total) * (1.0f / COLUMNS);

        total = 0.0f;
        each_vector([&](unsigned k, unsigned column) {
            if (!CACHED) fetch(kept[k], column);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                const float centred = kept[k][j] - mean;
                total += centred * centred;
            }
        });
        const float factor = 1.0f / sqrtf(reduce_row<Sum>(total) * (1.0f / COLUMNS) + EPSILON);

        each_vector([&](unsigned k, unsigned column) {
            if (!CACHED) fetch(kept[k], column), fetch_factors(k, column);
#if HAS_SUM
            store<WIDTH>((TYPE *)sum + start + column, kept[k]);
#endif
            float result[WIDTH];
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                result[j] = (kept[k][j] - mean) * factor;
#if HAS_SCALE
                result[j] *= scales[k][j];
#endif
#if HAS_BIAS
                result[j] += biases[k][j];
#endif
            }
            store<WIDTH>((TYPE *)out + start + column, result);
        });
    }
}
