// Tensors joined along an axis, or one tensor cut along it: copies of runs, whatever the element type.
//
// Mathematics: whole[row][start_k + i] = piece_k[row][i] for 0 <= i < end_k - start_k, where start_k = end_(k-1); with
//   SPLIT the assignment goes the other way.
// Layouts: all dense; a row is everything inside the axes in front of the axis (a pixel, for channels that come last).
//   Lengths are in units of BYTES bytes (16, 8, 4, 2), which divide every run. One thread copies one unit of the whole.
//   A piece of address 0 is there already, written by someone else; what a row has behind its last piece is zeros.
// Limits: 2 to 8 pieces, fewer than 2^31 units, addresses aligned to 16 bytes.
// Roof: memory. 2 * bytes of the whole over 4.29 TB/s on an H200; fraction not measured yet.
//
// Constants: BYTES, PIECES, SPLIT.
#include "overlap.h"

#if BYTES == 16
typedef FourWords Unit;
#elif BYTES == 8
typedef TwoWords Unit;
#elif BYTES == 4
typedef unsigned Unit;
#else
typedef unsigned short Unit;
#endif
static_assert(sizeof(Unit) == BYTES, "units have 16, 8, 4 or 2 bytes");

extern "C" __global__ void __launch_bounds__(256)
    concat(void *whole, unsigned units, unsigned row_units, void *piece0, void *piece1, void *piece2, void *piece3,
           void *piece4, void *piece5, void *piece6, void *piece7, unsigned end0, unsigned end1, unsigned end2,
           unsigned end3, unsigned end4, unsigned end5, unsigned end6, unsigned end7) {
    next_may_start();
    const unsigned place = blockIdx.x * blockDim.x + threadIdx.x;
    void *const pieces[] = {piece0, piece1, piece2, piece3, piece4, piece5, piece6, piece7};
    const unsigned ends[] = {end0, end1, end2, end3, end4, end5, end6, end7};
    const unsigned row = place / row_units, column = place % row_units;
    void *piece = pieces[0];
    unsigned start = 0, end = ends[0];
#pragma unroll
    for (int k = 1; k < PIECES; k++) {
        if (column >= ends[k - 1]) piece = pieces[k], start = ends[k - 1], end = ends[k];
    }
    Unit *inside = (Unit *)piece + row * (end - start) + column - start;
    previous_finished();
    if (place >= units) return;
#if SPLIT
    *inside = ((const Unit *)whole)[place];
#else
    if (column >= ends[PIECES - 1])
        ((Unit *)whole)[place] = Unit{};
    else if (piece)
        ((Unit *)whole)[place] = *inside;
#endif
}
