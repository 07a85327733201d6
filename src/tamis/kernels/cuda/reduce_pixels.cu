// Reduction over all pixels of channels-last images: global average pooling, sums and maxima.
//
// Mathematics: out[n][c] = mean, sum or maximum over p of in[n][p][c], in float32; NaN gives NaN.
// Layouts: in dense [N, pixels, CHANNELS] of TYPE, out dense [N, CHANNELS]. A block of LANES x ROWS threads makes
//   LANES * WIDTH channels of one image: the threads with one x walk over every ROWS-th pixel, then add up their
//   results in shared memory. WIDTH divides CHANNELS.
// Limits: fewer than 2^31 elements, addresses aligned to 16 bytes.
// Roof: memory. elements in * bytes over the bandwidth. Measured on an H100 (3.35 TB/s nominal): 0.44 of it for
//   ResNet-50's 7x7 average at batch 128 in float16, where PyTorch reaches 0.52.
//
// Constants: TYPE, CHANNELS, WIDTH, LANES, ROWS, LARGEST (maximum instead of sum).
#include "overlap.h"

TAMIS_DEVICE float join(float a, float b) {
#if LARGEST
    return a > b || a != a ? a : b;
#else
    return a + b;
#endif
}

extern "C" __global__ void __launch_bounds__(LANES *ROWS)
    reduce_pixels(void *out, const void *in, unsigned pixels, unsigned divisor) {
    next_may_start();
    __shared__ float partial[ROWS][LANES * WIDTH];
    constexpr unsigned blocks = (CHANNELS / WIDTH + LANES - 1) / LANES;  // of one image
    const unsigned image = blockIdx.x / blocks, channel = (blockIdx.x % blocks * LANES + threadIdx.x) * WIDTH;
    float result[WIDTH];
#pragma unroll
    for (int j = 0; j < WIDTH; j++) result[j] = LARGEST ? -TAMIS_INFINITY : 0.0f;
    previous_finished();
    if (channel < CHANNELS) {
        const TYPE *from = (const TYPE *)in + image * (pixels * CHANNELS) + channel;
#pragma unroll 4
        for (unsigned p = threadIdx.y; p < pixels; p += ROWS) {
            float values[WIDTH];
            load<WIDTH>(from + p * CHANNELS, values);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) result[j] = join(result[j], values[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++) partial[threadIdx.y][threadIdx.x * WIDTH + j] = result[j];
    __syncthreads();
    if (threadIdx.y > 0 || channel >= CHANNELS) return;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        for (int row = 1; row < ROWS; row++) result[j] = join(result[j], partial[row][threadIdx.x * WIDTH + j]);
        result[j] = LARGEST ? result[j] : result[j] / (float)divisor;
    }
    store<WIDTH>((TYPE *)out + image * CHANNELS + channel, result);
}
