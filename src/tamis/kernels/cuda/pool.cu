// Pooling of channels-last images: the largest value or the mean of a window.
//
// Mathematics: out[n][y][x][c] = max or mean of in[n][y * STRIDE_Y - TOP + i * DILATION_Y][x * STRIDE_X - LEFT + j *
//   DILATION_X][c] over 0 <= i < KERNEL_Y, 0 <= j < KERNEL_X. Cells outside the image count as -inf for the maximum; for
//   the mean they are zeros that count only with COUNT_PADS and inside the padding (a window that hangs over the padding
//   does not count the rest). NaN inside a window gives NaN.
// Layouts: in dense [N, IMAGE_HEIGHT, IMAGE_WIDTH, CHANNELS], out dense [N, OUT_HEIGHT, OUT_WIDTH, CHANNELS] of TYPE. One
//   thread makes WIDTH channels (a divisor of CHANNELS) of one position.
// Limits: two spatial axes, fewer than 2^31 elements, addresses aligned to 16 bytes.
// Roof: memory. (elements in + elements out) * bytes over the bandwidth, overlapping windows served by the caches.
//   Measured on an H100 (3.35 TB/s nominal): 0.81 of it for ResNet-50's pool at batch 128 in float16.
//
// Constants: TYPE, WIDTH, CHANNELS, IMAGE_HEIGHT, IMAGE_WIDTH, OUT_HEIGHT, OUT_WIDTH, KERNEL_Y, KERNEL_X, STRIDE_Y,
//   STRIDE_X, DILATION_Y, DILATION_X, TOP, LEFT, BOTTOM, RIGHT, AVERAGE, COUNT_PADS.
#include "overlap.h"

constexpr int UNROLL_Y = KERNEL_Y > 3 ? 1 : KERNEL_Y, UNROLL_X = KERNEL_X > 7 ? 1 : KERNEL_X;

// How many cells of a window along one axis count for the mean.
TAMIS_DEVICE int counted(int start, int kernel, int dilation, int low, int high) {
    int count = 0;
    for (int i = 0; i < kernel; i++) count += start + i * dilation >= low && start + i * dilation < high;
    return count;
}

extern "C" __global__ void __launch_bounds__(256) pool(void *out, const void *in, unsigned vectors) {
    next_may_start();
    const unsigned place = blockIdx.x * blockDim.x + threadIdx.x;
    constexpr unsigned per_pixel = CHANNELS / WIDTH;
    const unsigned channel = place % per_pixel * WIDTH, pixel = place / per_pixel;
    const int top = (int)(pixel / OUT_WIDTH % OUT_HEIGHT) * STRIDE_Y - TOP;
    const int left = (int)(pixel % OUT_WIDTH) * STRIDE_X - LEFT;
    const unsigned image = pixel / OUT_WIDTH / OUT_HEIGHT;
    const TYPE *from = (const TYPE *)in + image * (IMAGE_HEIGHT * IMAGE_WIDTH * CHANNELS) + channel;
    previous_finished();
    if (place >= vectors) return;

    float result[WIDTH];
#pragma unroll
    for (int j = 0; j < WIDTH; j++) result[j] = AVERAGE ? 0.0f : -TAMIS_INFINITY;
#pragma unroll(UNROLL_Y)
    for (int i = 0; i < KERNEL_Y; i++) {
        const int y = top + i * DILATION_Y;
        if (y < 0 || y >= IMAGE_HEIGHT) continue;
#pragma unroll(UNROLL_X)
        for (int k = 0; k < KERNEL_X; k++) {
            const int x = left + k * DILATION_X;
            if (x < 0 || x >= IMAGE_WIDTH) continue;
            float values[WIDTH];
            load<WIDTH>(from + (unsigned)(y * IMAGE_WIDTH + x) * CHANNELS, values);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                if (AVERAGE)
                    result[j] += values[j];
                else
                    result[j] = values[j] > result[j] || values[j] != values[j] ? values[j] : result[j];
            }
        }
    }
    if (AVERAGE) {
        const int count = COUNT_PADS ? counted(top, KERNEL_Y, DILATION_Y, -TOP, IMAGE_HEIGHT + BOTTOM) *
                                           counted(left, KERNEL_X, DILATION_X, -LEFT, IMAGE_WIDTH + RIGHT)
                                     : counted(top, KERNEL_Y, DILATION_Y, 0, IMAGE_HEIGHT) *
                                           counted(left, KERNEL_X, DILATION_X, 0, IMAGE_WIDTH);
        const float divisor = count > 1 ? (float)count : 1.0f;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) result[j] /= divisor;
    }
    store<WIDTH>((TYPE *)out + place * WIDTH, result);
}
