// Softmax, or its logarithm, of rows.
//
// Mathematics: e = exp(x - max(x)); out = e / sum(e), with LOG x - max(x) - log(sum(e)). All in float32. A row that
//   holds NaN or +inf, or nothing but -inf, gives NaN, as NumPy's does.
// Layouts: x and out: dense [rows, COLUMNS] of TYPE. See rows.h for who does what.
// Limits: fewer than 2^31 elements, addresses aligned to 16 bytes.
// Roof: memory. 2 * rows * COLUMNS * bytes over the bandwidth. Measured on an H100 (3.35 TB/s nominal): 0.86 of it,
//   rows of 384 in float16.
//
// Constants: TYPE, COLUMNS, WIDTH, WARPS, CACHED, LOG.
#include "overlap.h"
#include "rows.h"

extern "C" __global__ void __launch_bounds__(ROW_THREADS * (WARPS == 1 ? 4 : 1))
    softmax(void *out, const void *x, unsigned rows) {
    next_may_start();
    const unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
    previous_finished();
    if (row >= rows) return;
    const unsigned start = row * COLUMNS;
    const TYPE *from = (const TYPE *)x + start;

    float kept[KEPT][WIDTH];
    float largest = -TAMIS_INFINITY;
    each_vector([&](unsigned k, unsigned column) {
        load<WIDTH>(from + column, kept[k]);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) largest = fmaxf(largest, kept[k][j]);
    });
    largest = reduce_row<Largest>(largest);

    float total = 0.0f;
    each_vector([&](unsigned k, unsigned column) {
        if (!CACHED) load<WIDTH>(from + column, kept[k]);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            const float shifted = kept[k][j] - largest, exponential = expf(shifted);
            total += exponential;
            kept[k][j] = LOG ? shifted : exponential;
        }
    });
    total = reduce_row<Sum>(total);

    const float logarithm = logf(total), factor = 1.0f / total;
    each_vector([&](unsigned k, unsigned column) {
        float result[WIDTH];
        if (!CACHED) {
            load<WIDTH>(from + column, kept[k]);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                const float shifted = kept[k][j] - largest;
                kept[k][j] = LOG ? shifted : expf(shifted);
            }
        }
#pragma unroll
        for (int j = 0; j < WIDTH; j++) result[j] = LOG ? kept[k][j] - logarithm : kept[k][j] * factor;
        store<WIDTH>((TYPE *)out + start + column, result);
    });
}
