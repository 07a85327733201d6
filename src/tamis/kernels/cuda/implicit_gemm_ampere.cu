// Convolution and matrix product on any tensor cores since Ampere, weights dense or 2:4: out = program(W * X + bias).
//
// Mathematics: out[pixel, filter] = sum over taps and channels of W[filter, tap, channel] X[pixel a tap sees, channel].
//   Weights are operand A (16 rows of filters), pixels operand B (8 columns), sums are float32 registers. The sum runs
//   over `steps`: tap by tap, 64 channels at a time. With 2:4 weights a step is two mma.sp of 32 channels, else four
//   mma of 16; these are its parts.
// Layouts: X is NHWC, or a matrix [pixels, channels]. In shared memory a pixel's 64 channels are a line of 128 bytes,
//   its eight chunks of 16 bytes permuted: chunk c of pixel p lies at place c ^ p % 8. So the eight rows that ldmatrix
//   reads at a time (one chunk of eight pixels) and the chunks that eight threads write (one pixel) are in all 32
//   banks. The weights lie as the lanes hold them, one block of bytes for each tile of filters and step, packed by
//   tamis.formats.ampere: 16 bytes a lane for every 16 filters and part, then one word of metadata a lane for every 16.
//   out is [pixels, pitch], of which `filters` channels from `offset` on are written.
// Work: a block computes DOWN * MATRICES * 16 filters x ACROSS * COLUMNS * 8 pixels, each of its DOWN x ACROSS warps
//   MATRICES x COLUMNS products a part. All threads copy, STAGES steps ahead; out of the image they copy zeros. While a
//   part is multiplied the operands of the next one are loaded. Blocks of the same pixels follow each other.
// Limits: channels a multiple of 8 (16 bytes a pixel); up to 2^31 - 1 pixels and elements; padded images of up to 32767
//   pixels a side. Channels, filters and pixels past the end are zeros.
// Groups (GROUPED): a tile has filters of one bundle of groups (tamis.formats.bundles), and its steps are those of the
//   bundle's channels, whatever others a pixel has. Within a bundle each filter has zeros for the channels of other
//   groups. With SKIPS only those are multiplied that lie in one product with its own. Where such a channel is infinite
//   or no number, the result may be no number, but never another.
// Roof: tensor cores, 312 TFLOP/s dense on an A100, twice that in 2:4. Measured on an H200 alone, where `mma`
//   reaches less than `wgmma`: up to 345 TFLOP/s dense and 421 in 2:4 (3x3, 128 channels at 28 x 28, batch 128).
//
// Constants: KERNEL (its name), SPARSE, IM2COL, GROUPED, SKIPS, MATRICES, COLUMNS (even), DOWN, ACROSS, STAGES (two at
// least), PRODUCT_TYPE ("f16" or "bf16"), and those of gemm_epilogue.h.
#include "ampere.h"
#include "gemm_epilogue.h"
#include "overlap.h"

constexpr int THREADS = DOWN * ACROSS * 32;
constexpr int FILTERS = DOWN * MATRICES * 16, PIXELS = ACROSS * COLUMNS * 8;
constexpr int PARTS = SPARSE ? 2 : 4;
constexpr int CHUNKS = 8 / PARTS;  // of a pixel that one product reads
constexpr int MATRIX_BYTES = PARTS * 512, PLACES_BYTES = SPARSE ? 128 : 0;  // of 16 filters in one step
constexpr int WEIGHT_BYTES = DOWN * MATRICES * (MATRIX_BYTES + PLACES_BYTES);
constexpr int PIXEL_BYTES = PIXELS * 128;
constexpr int STAGE_BYTES = PIXEL_BYTES + WEIGHT_BYTES;
constexpr int STRIP = 16;  // pixels of a warp that leave by shared memory at a time
constexpr int PITCH = MATRICES * 16 + 4;  // floats between them: writes of a warp go to 32 banks

// The image, and the filter that slides over it. It sees `depth` of the `channels` of a pixel.
struct Image {
    const unsigned short *data;
    int pixels, channels, depth, height, width, across, dilation_w, dilation_h;
};

// Which of its channels, under which tap, the next step reads.
struct Walk {
    int step, channel, right, down;
    __device__ __forceinline__ void next(const Image &image) {
        step++, channel += 64;
        if (channel < image.depth) return;
        channel = 0, right += image.dilation_w;
        if (right < image.across * image.dilation_w) return;
        right = 0, down += image.dilation_h;
    }
};

// What a filter's first tap sees at a pixel of the result: its first element, which wraps where it lies in the padding,
// and its row and column in 16 bits each. The row is negative where the pixel does not exist.
TAMIS_DEVICE TwoWords seen(int pixel, const Image &image, int out_width, int out_height, int stride_w, int stride_h,
                           int pad_left, int pad_top) {
    const bool exists = pixel < image.pixels;
    if constexpr (!IM2COL) return {(unsigned)pixel * image.channels, exists ? 0 : ~0u};
    const int w = pixel % out_width * stride_w - pad_left;
    const int h = pixel / out_width % out_height * stride_h - pad_top;
    const int n = pixel / out_width / out_height;
    const unsigned first = (((unsigned)n * image.height + h) * image.width + w) * image.channels;
    const unsigned row = exists ? h : -32768;  // no tap gets from there into the image
    return {first, row << 16 | (w & 0xffff)};
}

// Whether a tap finds a pixel of the image where the first one saw `place`.
TAMIS_DEVICE bool within(unsigned place, const Image &image, const Walk &walk) {
    if constexpr (!IM2COL) return (int)place >= 0;
    const unsigned row = ((int)place >> 16) + walk.down, column = (short)place + walk.right;
    return row < (unsigned)image.height && column < (unsigned)image.width;
}

// One step's pixels into a stage. `table` has what is seen at the tile's pixels: held in registers, or computed anew,
// it would cost registers that the sums need.
TAMIS_DEVICE void fetch_pixels(unsigned stage, const TwoWords *table, const Image &image, const Walk &walk) {
    constexpr int LINES = THREADS / 8;  // at a time
    const int line = threadIdx.x / 8, chunk = threadIdx.x % 8;
    const int channel = walk.channel + chunk * 8;
    const unsigned tap = ((unsigned)walk.down * image.width + walk.right) * image.channels + channel;
    const unsigned to = stage + line * 128 + (chunk ^ line % 8) * 16;
#pragma unroll
    for (int i = 0; i < PIXELS / LINES; i++) {
        const TwoWords here = table[line + i * LINES];
        const bool exists = channel < image.depth && within(here.y, image, walk);
        copy_or_zero(to + i * LINES * 128, image.data + (exists ? here.x + tap : 0u), exists);
    }
}

// One step's weights into a stage.
TAMIS_DEVICE void fetch_weights(unsigned stage, const unsigned char *weights) {
#pragma unroll
    for (int at = 0; at < WEIGHT_BYTES; at += THREADS * 16) {
        const int mine = at + threadIdx.x * 16;
        if (at + THREADS * 16 <= WEIGHT_BYTES || mine < WEIGHT_BYTES) copy(stage + PIXEL_BYTES + mine, weights + mine);
    }
}

// What a lane holds of the operands of one part.
struct Operands {
    unsigned filters[MATRICES * 4], pixels[COLUMNS * CHUNKS], places[MATRICES];
};

// SKIPS: which parts of the bundle's channels 16 filters sum over, a bit each, and whether any of the warp's do. All
// others have zeros as weights. Parts that have no bit are multiplied always.
struct Needs {
    unsigned of[MATRICES], any;
};
TAMIS_DEVICE bool needed(unsigned parts, int part) { return !SKIPS || part > 31 || parts >> part % 32 & 1; }

// The first of the warp's filters counts from its bundle on, whose channels begin `shift` before its first group's.
TAMIS_DEVICE Needs needs_of(int filter, int bundle_filters, int shift, int group_filters, int group_channels) {
    constexpr int WIDE = 64 / PARTS;
    Needs needs = {};
#pragma unroll
    for (int matrix = 0; matrix < MATRICES; matrix++) {
        const int first = filter + matrix * 16, last = first + 15 < bundle_filters ? first + 15 : bundle_filters - 1;
        const int begin = (shift + first / group_filters * group_channels) / WIDE;
        const int end = (shift + (last / group_filters + 1) * group_channels - 1) / WIDE + 1;
        for (int part = begin; first <= last && part < end && part < 32; part++) needs.of[matrix] |= 1u << part;
        needs.any |= needs.of[matrix];
    }
    return needs;
}

// Where a warp finds its operands in a stage.
struct Corner {
    int filters, places;  // of its first matrix, of this lane
    int pixels, swizzle;  // of the row whose address this lane gives to ldmatrix, and its pixel % 8
    int chunk;  // that this lane's row has in the first part
};

TAMIS_DEVICE Corner corner(int warp, int lane) {
    const int matrix = warp / ACROSS * MATRICES, row = warp % ACROSS * COLUMNS * 8 + lane / 8 / CHUNKS * 8 + lane % 8;
    return {PIXEL_BYTES + matrix * MATRIX_BYTES + lane * 16,
            PIXEL_BYTES + DOWN * MATRICES * MATRIX_BYTES + matrix * 128 + lane * 4, row * 128, lane % 8,
            lane / 8 % CHUNKS};
}

// One part's operands, which comes after `before` others of the bundle's channels. The metadata of a step is for both of
// its parts: the second one gets it from the `first`.
TAMIS_DEVICE void load_part(Operands &to, const Operands &first, const unsigned char *stage, const Corner &corner,
                            int part, const Needs &needs, int before) {
#pragma unroll
    for (int i = 0; i < COLUMNS * CHUNKS; i += 4) {
        if (!needed(needs.any, before)) break;
        const int chunk = (part * CHUNKS + corner.chunk) ^ corner.swizzle;
        load_matrices(shared_address(stage + corner.pixels + i / CHUNKS * 1024 + chunk * 16), to.pixels + i);
    }
#pragma unroll
    for (int matrix = 0; matrix < MATRICES; matrix++) {
        const unsigned char *at = stage + corner.filters + matrix * MATRIX_BYTES + part * 512;
        if (needed(needs.of[matrix], before))
            load_words<4>(reinterpret_cast<const unsigned *>(at), to.filters + matrix * 4);
        if constexpr (SPARSE)
            to.places[matrix] = part ? first.places[matrix]
                                     : *reinterpret_cast<const unsigned *>(stage + corner.places + matrix * 128);
    }
}

TAMIS_DEVICE void multiply(float (&sums)[MATRICES][COLUMNS][4], const Operands &part, int number, const Needs &needs,
                           int before) {
#pragma unroll
    for (int matrix = 0; matrix < MATRICES; matrix++) {
        if (!needed(needs.of[matrix], before)) continue;
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            const unsigned *a = part.filters + matrix * 4, *b = part.pixels + column * CHUNKS;
            if constexpr (!SPARSE)
                multiply_dense(sums[matrix][column], a, b);
            else if (number == 0)
                multiply_sparse<0>(sums[matrix][column], a, b, part.places[matrix]);
            else
                multiply_sparse<1>(sums[matrix][column], a, b, part.places[matrix]);
        }
    }
}

// The sums of a warp through shared memory, where they turn from filters x pixels to pixels x filters.
TAMIS_DEVICE void leave(const float (&sums)[MATRICES][COLUMNS][4], float *strip, int lane, int filter, int pixel,
                        const float *bias, const OUT_TYPE *residual, OUT_TYPE *out, int filters, int pixels, int pitch,
                        int offset, int residual_pitch) {
    constexpr int LANES = MATRICES * 2;  // of a pixel
    const int channel = filter + lane % LANES * 8;
    const int count = filters - channel < 8 ? filters - channel : 8;
    Channels own;
    load_channels(bias, channel, filters, own);
#pragma unroll
    for (int part = 0; part < COLUMNS * 8 / STRIP; part++) {
#pragma unroll
        for (int matrix = 0; matrix < MATRICES; matrix++)
#pragma unroll
            for (int i = 0; i < STRIP / 2; i++)
                strip[(i / 4 * 8 + lane % 4 * 2 + i % 2) * PITCH + matrix * 16 + lane / 4 + i / 2 % 2 * 8] =
                    sums[matrix][part * STRIP / 8 + i / 4][i % 4];
        warp_meets();
        for (int line = lane / LANES; line < STRIP; line += 32 / LANES) {
            const int here = pixel + part * STRIP + line;
            if (here >= pixels || count <= 0) continue;
            float values[8];
            Eight residuals;
            load<8>(strip + line * PITCH + lane % LANES * 8, values);
            if constexpr (RESIDUAL)
                load_residual(residual + (long long)here * residual_pitch + channel, count, residuals);
            finish(values, own, residuals, count, out + (long long)here * pitch + offset + channel);
        }
        warp_meets();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    KERNEL(const unsigned short *data, const unsigned char *weights, const float *bias, const OUT_TYPE *residual,
           OUT_TYPE *out, int filters, int pixels, int steps, int channels, int height, int width, int across,
           int out_width, int out_height, int stride_w, int stride_h, int pad_left, int pad_top, int dilation_w,
           int dilation_h, int pitch, int offset, int residual_pitch, int bundle_tiles, int bundle_filters,
           int bundle_window, int last_window, int group_filters, int group_channels) {
    next_may_start();
    SHARED_MEMORY(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int bundles = GROUPED ? (filters + bundle_filters - 1) / bundle_filters : 1;
    const int across_filters = GROUPED ? bundles * bundle_tiles : (filters + FILTERS - 1) / FILTERS;
    int filter = blockIdx.x % across_filters * FILTERS, end = filters, depth = channels;
    const int pixel = blockIdx.x / across_filters * PIXELS, tile = filter / FILTERS;
    Needs needs = {};
    if constexpr (GROUPED) {
        const int bundle = tile / bundle_tiles, begin = bundle * bundle_filters, window = bundle * bundle_window;
        filter = begin + tile % bundle_tiles * FILTERS;
        end = begin + bundle_filters < filters ? begin + bundle_filters : filters;
        depth = bundle_window * 8;
        const int first = window < last_window ? window : last_window;
        data += first * 8;
        if constexpr (SKIPS)
            needs = needs_of(filter - begin + warp / ACROSS * MATRICES * 16, bundle_filters, (window - first) * 8,
                             group_filters, group_channels);
    }
    const Image image = {data, pixels, channels, depth, height, width, across, dilation_w, dilation_h};
    TwoWords *table = reinterpret_cast<TwoWords *>(memory + STAGES * STAGE_BYTES);
    for (int i = threadIdx.x; i < PIXELS; i += THREADS)
        table[i] = seen(pixel + i, image, out_width, out_height, stride_w, stride_h, pad_left, pad_top);
    __syncthreads();

    Walk walk = {};
    weights += (long long)tile * steps * WEIGHT_BYTES;
    const auto fetch = [&](int stage) {
        if (walk.step < steps) {
            const unsigned to = shared_address(memory) + stage;
            fetch_pixels(to, table, image, walk);
            fetch_weights(to, weights);
            weights += WEIGHT_BYTES;
            walk.next(image);
        }
        copies_commit();  // one group a step: what is waited for is counted
    };
    previous_finished();
    for (int stage = 0; stage < STAGES; stage++) fetch(stage * STAGE_BYTES);

    float sums[MATRICES][COLUMNS][4] = {};
    Operands operands[2];
    const Corner mine = corner(warp, lane);
    int stage = 0;
    copies_wait<STAGES - 1>();
    __syncthreads();
    load_part(operands[0], operands[0], memory, mine, 0, needs, 0);
    const int all_parts = (depth + 63) / 64 * PARTS;
    int before = 0;  // parts of the bundle's channels in front of this step's
    for (int step = 0; step < steps; step++) {
        const int next = before + PARTS < all_parts ? before + PARTS : 0;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            if (part < PARTS - 1) {
                load_part(operands[(part + 1) % 2], operands[part % 2], memory + stage, mine, part + 1, needs,
                          before + part + 1);
            } else {
                // All have read this stage, and see the next one; behind the last step it is not used.
                copies_wait<STAGES - 2>();
                __syncthreads();
                const int read = stage;
                stage = stage + STAGE_BYTES < STAGES * STAGE_BYTES ? stage + STAGE_BYTES : 0;
                load_part(operands[0], operands[0], memory + stage, mine, 0, needs, next);
                fetch(read);
            }
            multiply(sums, operands[part % 2], part, needs, before + part);
        }
        before = next;
    }

    __syncthreads();  // what was loaded behind the last step is of no use, but must not race with the strips
    leave(sums, reinterpret_cast<float *>(memory) + warp * STRIP * PITCH, lane, filter + warp / ACROSS * MATRICES * 16,
          pixel + warp % ACROSS * COLUMNS * 8, bias, residual, out, end, pixels, pitch, offset, residual_pitch);
}
