// Images of few channels as channels-last ones with more: blocks of pixels become pixels, zeros behind, type converted.
//
// Mathematics: out[n][i][j][(c * BLOCK + b_y) * BLOCK + b_x] = convert(in[n][c][y][x]) with
//   y = BLOCK * (i - BLOCKS_ABOVE) + b_y, x = BLOCK * (j - BLOCKS_LEFT) + b_x, 0 <= b_y, b_x < BLOCK; 0 where y or x lies
//   outside of the image, and in the channels behind. BLOCK = 1 only adds channels and changes the order.
// Layouts: in is dense row-major [N, CHANNELS_IN, IN_HEIGHT, IN_WIDTH], or with IN_CHANNELS_LAST
//   [N, IN_HEIGHT, IN_WIDTH, CHANNELS_IN]; out is dense [N, OUT_HEIGHT, OUT_WIDTH, CHANNELS_OUT]. One thread makes PART
//   channels of one pixel, reads RUN neighbours of a row at a time (RUN divides BLOCK, IN_WIDTH and PART; 1 with
//   IN_CHANNELS_LAST) and writes WIDTH channels at a time. PART divides CHANNELS_OUT, WIDTH divides PART. With 16 bytes
//   a thread neighbours write neighbouring bytes; what they read of a row lies side by side. In this order of channels,
//   where BLOCK is a power of two, addresses need no division by it and runs are long.
// Limits: BLOCK * BLOCK * CHANNELS_IN <= CHANNELS_OUT, PART <= 16, fewer than 2^31 elements in `in` and in `out`,
//   addresses aligned to 16 bytes.
// Roof: memory. bytes in + bytes out over 4.29 TB/s on an H200; fraction not measured yet.
//
// Constants: IN_TYPE, OUT_TYPE, CHANNELS_IN, CHANNELS_OUT, IN_HEIGHT, IN_WIDTH, OUT_HEIGHT, OUT_WIDTH, BLOCK,
//   BLOCKS_ABOVE, BLOCKS_LEFT, IN_CHANNELS_LAST, PART, RUN, WIDTH.
#include "overlap.h"

extern "C" __global__ void __launch_bounds__(256) space_to_depth(void *out, const void *in, unsigned parts) {
    next_may_start();
    const unsigned place = blockIdx.x * blockDim.x + threadIdx.x;
    constexpr unsigned per_pixel = CHANNELS_OUT / PART;
    const unsigned pixel = place / per_pixel, first = place % per_pixel * PART;
    // What lies above or left of the image wraps around, and is behind it.
    const unsigned left = pixel % OUT_WIDTH * BLOCK - BLOCKS_LEFT * BLOCK;
    const unsigned top = pixel / OUT_WIDTH % OUT_HEIGHT * BLOCK - BLOCKS_ABOVE * BLOCK;
    const unsigned image = pixel / OUT_WIDTH / OUT_HEIGHT;
    const IN_TYPE *from = (const IN_TYPE *)in + image * (CHANNELS_IN * IN_HEIGHT * IN_WIDTH);
    previous_finished();
    if (place >= parts) return;
    float values[PART];
#pragma unroll
    for (unsigned j = 0; j < PART; j += RUN) {
        const unsigned channel = first + j, c = channel / (BLOCK * BLOCK);
        const unsigned x = left + channel % BLOCK, y = top + channel / BLOCK % BLOCK;
        // Where the image has all pixels of the blocks, the compiler drops the comparison.
        const bool inside = c < CHANNELS_IN &&
                            ((BLOCKS_ABOVE == 0 && OUT_HEIGHT * BLOCK <= IN_HEIGHT) || y < IN_HEIGHT) &&
                            ((BLOCKS_LEFT == 0 && OUT_WIDTH * BLOCK <= IN_WIDTH) || x < IN_WIDTH);
        const unsigned at =
            IN_CHANNELS_LAST ? (y * IN_WIDTH + x) * CHANNELS_IN + c : (c * IN_HEIGHT + y) * IN_WIDTH + x;
        // Without a branch all reads are under way together.
        float run[RUN];
        load<RUN>(from + (inside ? at : 0), run);
#pragma unroll
        for (int k = 0; k < RUN; k++) values[j + k] = inside ? run[k] : 0.0f;
    }
    OUT_TYPE *to = (OUT_TYPE *)out + place * PART;
#pragma unroll
    for (int j = 0; j < PART; j += WIDTH) {
        float chunk[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; k++) chunk[k] = values[j + k];
        store<WIDTH>(to + j, chunk);
    }
}
