/* The AMX instructions that linear_amx.cpp uses, one element at a time, as the processor manual describes them.
 *
 * Configuration errors that would fault on the processor abort the process with a message. Tile registers belong
 * to the thread. Loading a configuration zeroes the tiles; using an unconfigured tile is an error.
 */
#ifndef AMX_EMULATED_H
#define AMX_EMULATED_H

#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace {

struct EmulatedTiles {
    uint8_t config[64];
    uint8_t data[8][16][64];
};

thread_local EmulatedTiles emulated;

[[noreturn]] inline void emulation_fault(const char *what) {
    fprintf(stderr, "emulated AMX: %s\n", what);
    abort();
}

inline int tile_rows(int tile) { return emulated.config[48 + tile]; }
inline int tile_row_bytes(int tile) { return emulated.config[16 + 2 * tile] | emulated.config[17 + 2 * tile] << 8; }

inline void need_tile(int tile) {
    if (tile < 0 || tile > 7) emulation_fault("no such tile");
    if (emulated.config[0] != 1) emulation_fault("tiles are not configured");
    if (!tile_rows(tile) || !tile_row_bytes(tile)) emulation_fault("the tile is not configured");
}

inline void emulated_loadconfig(const void *from) {
    memcpy(emulated.config, from, 64);
    memset(emulated.data, 0, sizeof emulated.data);
    if (emulated.config[0] == 0) {
        memset(emulated.config, 0, 64);
        return;
    }
    if (emulated.config[0] != 1) emulation_fault("unknown palette");
    for (int i = 1; i < 16; i++)
        if (emulated.config[i]) emulation_fault("reserved configuration bytes are not zero");
    for (int tile = 0; tile < 16; tile++) {
        const int rows = tile_rows(tile), bytes = tile_row_bytes(tile);
        if (tile > 7 ? rows || bytes : rows > 16 || bytes > 64 || !rows != !bytes) emulation_fault("bad tile shape");
    }
}

inline void emulated_storeconfig(void *to) { memcpy(to, emulated.config, 64); }

inline void emulated_release() { memset(&emulated, 0, sizeof emulated); }

inline void emulated_zero(int tile) {
    need_tile(tile);
    memset(emulated.data[tile], 0, sizeof emulated.data[tile]);
}

inline void emulated_load(int tile, const void *from, int64_t stride) {
    emulated_zero(tile);
    for (int row = 0; row < tile_rows(tile); row++)
        memcpy(emulated.data[tile][row], (const char *)from + row * stride, (size_t)tile_row_bytes(tile));
}

inline void emulated_store(int tile, void *to, int64_t stride) {
    need_tile(tile);
    for (int row = 0; row < tile_rows(tile); row++)
        memcpy((char *)to + row * stride, emulated.data[tile][row], (size_t)tile_row_bytes(tile));
}

inline float without_denormal(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (!(bits & 0x7f800000u)) bits &= 0x80000000u;
    memcpy(&x, &bits, 4);
    return x;
}

inline float bfloat16_at(const uint8_t *row, int index) {
    const uint32_t bits = (uint32_t)(row[2 * index] | row[2 * index + 1] << 8) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return without_denormal(x);
}

inline void emulated_dpbf16ps(int c, int a, int b) {
    need_tile(c), need_tile(a), need_tile(b);
    if (c == a || c == b || a == b) emulation_fault("operands must be three different tiles");
    const int rows = tile_rows(c), columns = tile_row_bytes(c) / 4, pairs = tile_row_bytes(a) / 4;
    if (tile_rows(a) != rows || tile_rows(b) != pairs || tile_row_bytes(b) != tile_row_bytes(c))
        emulation_fault("tile shapes do not fit");
    for (int m = 0; m < rows; m++)
        for (int p = 0; p < pairs; p++)
            for (int n = 0; n < columns; n++) {
                float sum;
                memcpy(&sum, &emulated.data[c][m][4 * n], 4);
                for (int i = 0; i < 2; i++) {
                    const float x = bfloat16_at(emulated.data[a][m], 2 * p + i);
                    const float w = bfloat16_at(emulated.data[b][p], 2 * n + i);
                    sum = without_denormal(__builtin_fmaf(x, w, without_denormal(sum)));
                }
                memcpy(&emulated.data[c][m][4 * n], &sum, 4);
            }
}

}  // namespace

#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated_loadconfig
#define _tile_storeconfig emulated_storeconfig
#define _tile_release emulated_release
#define _tile_zero emulated_zero
#define _tile_loadd emulated_load
#define _tile_stored emulated_store
#define _tile_dpbf16ps emulated_dpbf16ps

#endif
