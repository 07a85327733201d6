// Hopper's barriers, copy engine and products: see hopper_emulated.h.
#include <array>

#include "emulation.h"

#include "hopper_emulated.h"

// --- barriers ---

// A barrier's phase ends when no arrival and no byte is missing.
struct EmulatedBarrier {
    short arrivals, missing;
    int bytes_and_phase;  // bytes that are still to come, twice, plus the phase
    void settle() {
        if (missing < 0) __builtin_trap();
        if (missing == 0 && bytes_and_phase >> 1 == 0) {
            missing = arrivals;
            bytes_and_phase ^= 1;
        }
    }
};
static EmulatedBarrier &emulated_barrier_in(unsigned rank, unsigned address) {
    if (address % 8) __builtin_trap();
    return *reinterpret_cast<EmulatedBarrier *>(emulated_in(rank, address, 8));
}
static EmulatedBarrier &emulated_barrier(unsigned address) { return emulated_barrier_in(emulated_rank(), address); }
void barrier_make(unsigned address, unsigned arrivals) {
    emulated_barrier(address) = {(short)arrivals, (short)arrivals, 0};
}
void barrier_arrive(unsigned address) { barrier_arrive_in(emulated_rank(), address); }
void barrier_arrive_in(unsigned rank, unsigned address) {
    emulated_barrier_in(rank, address).missing--;
    emulated_barrier_in(rank, address).settle();
}
void barrier_expect(unsigned address, unsigned bytes) {
    emulated_barrier(address).bytes_and_phase += 2 * (int)bytes;
    barrier_arrive(address);
}
static void emulated_came(unsigned rank, unsigned address, unsigned bytes) {
    emulated_barrier_in(rank, address).bytes_and_phase -= 2 * (int)bytes;
    emulated_barrier_in(rank, address).settle();
}
void barrier_wait(unsigned address, unsigned parity) {
    if (parity > 1) __builtin_trap();
    emulated_wait_until([=] { return (unsigned)(emulated_barrier(address).bytes_and_phase & 1) != parity; });
}
void threads_meet(int number, int threads) { emulated_meet(number, threads); }

// --- clusters ---

unsigned rank_in_cluster() { return emulated_rank(); }
void cluster_gathers() { emulated_wait(EmulatedFibre::AT_CLUSTER); }

// --- copies ---

void copy_bytes(unsigned address, const void *from, unsigned bytes, unsigned barrier) {
    if (address % 16 || bytes % 16 || (uintptr_t)from % 16) __builtin_trap();
    memcpy(emulated_at(address, bytes), from, bytes);
    emulated_came(emulated_rank(), barrier, bytes);
}
void copy_to(unsigned rank, unsigned address, unsigned from, unsigned bytes, unsigned barrier) {
    if (rank == emulated_rank() || address % 16 || bytes % 16 || from % 16) __builtin_trap();
    memcpy(emulated_in(rank, address, bytes), emulated_at(from, bytes), bytes);
    emulated_came(rank, barrier, bytes);
}
// 128 bytes of a pixel, whose element 0 is `pixel`, or zeros, as row `row` of a tile in the 128-byte swizzle.
static void emulated_row(unsigned rank, unsigned address, int row, const TensorMap &map, int size, bool inside,
                         long long pixel, int channel) {
    const bool aligned = (map.pixel_apart | map.line_apart | map.image_apart) * size % 16 == 0;
    if (address % 1024 || !aligned) __builtin_trap();
    const long long first = (pixel + channel) * size;
    for (int byte = 0; byte < 128; byte++) {
        const unsigned at = address + row * 128 + byte, swizzled = at ^ (at >> 7 & 7) << 4;
        const bool exists = inside && channel + byte / size < map.channels;
        *emulated_in(rank, swizzled, 1) = exists ? map.base[first + byte] : 0;
    }
}
// A copy goes to the same place in each block of the cluster, and completes on each one's barrier.
template <class Copy> static void emulated_everywhere(bool alone, unsigned barrier, unsigned bytes, Copy copy) {
    const unsigned own = emulated_rank();
    for (unsigned rank = alone ? own : 0; rank < (alone ? own + 1 : emulated.cluster); rank++) {
        copy(rank);
        emulated_came(rank, barrier, bytes);
    }
}
void emulated_copy_rows(EmulatedCopy how, unsigned address, const TensorMap &map, int channel, int row,
                        unsigned barrier) {
    const int size = emulated_size(how.type);
    if (map.windows || map.mode != 0 || map.channels * size % 16) __builtin_trap();
    emulated_everywhere(how.alone, barrier, map.box * 128, [&](unsigned rank) {
        for (int i = 0; i < map.box; i++) emulated_row(rank, address, i, map, size, row + i < map.n, map.first_of(0, 0, row + i),
                                                   channel);
    });
}
void emulated_copy_pixels(EmulatedCopy how, unsigned address, const TensorMap &map, int channel, int w, int h, int n,
                          int right, int down, unsigned barrier) {
    const int size = emulated_size(how.type);
    if (map.windows || map.mode != 1 || map.channels * size % 16) __builtin_trap();
    if (right < 0 || right > 255 || down < 0 || down > 255) __builtin_trap();
    emulated_everywhere(how.alone, barrier, map.box * 128, [&](unsigned rank) {
        int base_w = w, base_h = h, base_n = n;
        for (int i = 0; i < map.box; i++) {
            const int x = base_w + right, y = base_h + down;
            const bool inside = base_n < map.n && x >= 0 && x < map.w && y >= 0 && y < map.h;
            emulated_row(rank, address, i, map, size, inside, map.first_of(base_n, y, x), channel);
            base_w += map.step_w;
            if (base_w > map.w - 1 + map.high_w) base_w = map.low_w, base_h += map.step_h;
            if (base_h > map.h - 1 + map.high_h) base_h = map.low_h, base_n++;
        }
    });
}

void emulated_copy_lines(EmulatedCopy how, unsigned address, const TensorMap &map, int channel, int w, int h, int n,
                         unsigned barrier) {
    const int size = emulated_size(how.type);
    if (map.windows || map.mode != 2 || map.channels * size % 16 || map.box > 256 || map.lines > 256) __builtin_trap();
    emulated_everywhere(how.alone, barrier, map.lines * map.box * 128, [&](unsigned rank) {
        for (int i = 0; i < map.lines * map.box; i++) {
            const int x = w + i % map.box, y = h + i / map.box;
            const bool inside = n < map.n && x >= 0 && x < map.w && y >= 0 && y < map.h;
            emulated_row(rank, address, i, map, size, inside, map.first_of(n, y, x), channel);
        }
    });
}

// --- results that turn ---

// Element (row, column) of a lane's words: which lane has the address of its column, and the byte there.
template <class Move> static void emulated_turn(unsigned address, Move move) {
    if (address % 16) __builtin_trap();
    const unsigned lane = emulated_lane();
    for (unsigned matrix = 0; matrix < 4; matrix++)
        for (unsigned half = 0; half < 2; half++) {
            const unsigned column = emulated_from_lane(address, 8 * matrix + lane % 4 * 2 + half);
            move(matrix, half, reinterpret_cast<unsigned short *>(emulated_at(column + lane / 4 * 2, 2)));
        }
}
void load_turned(unsigned address, unsigned (&words)[4]) {
    unsigned found[4] = {};
    emulated_turn(address, [&](unsigned matrix, unsigned half, const unsigned short *at) {
        found[matrix] |= (unsigned)*at << (16 * half);
    });
    memcpy(words, found, sizeof found);
}
void store_turned(unsigned address, const unsigned (&words)[4]) {
    emulated_turn(address, [&](unsigned matrix, unsigned half, unsigned short *at) {
        *at = (unsigned short)(words[matrix] >> (16 * half));
    });
}

// --- wgmma ---

void products_commit() { emulated_commit(); }
void emulated_products_wait(int pending) { emulated_finish(pending); }

// `count` elements of a row of an operand in K-major order.
static void emulated_elements(unsigned long long operand, int row, int count, char type, float *elements) {
    const unsigned start = (operand & 0x3fff) << 4, leading = (operand >> 16 & 0x3fff) << 4;
    const unsigned stride = (operand >> 32 & 0x3fff) << 4, swizzle = operand >> 62;
    const int size = emulated_size(type);
    for (int i = 0; i < count; i++) {
        const int byte = size * i;
        unsigned at = start + row / 8 * stride;
        if (swizzle == 0)
            at += byte / 16 * leading + row % 8 * 16 + byte % 16;
        else if (swizzle == 1)
            at += row % 8 * 128 + byte, at ^= (at >> 7 & 7) << 4;
        else
            __builtin_trap();
        const unsigned char *from = emulated_at(at, size);
        elements[i] = emulated_number(size == 1 ? *from : *reinterpret_cast<const unsigned short *>(from), type);
    }
}

// Where the quad's threads hold operand A: read when the product runs, which may be as late as the kernel waits for it.
template <class Sum> static void emulated_meet_quad(EmulatedProduct<Sum> &p) {
    for (unsigned h = 0; p.held && h < 4; h++)
        p.quad[h] = reinterpret_cast<const unsigned *>(
            (uintptr_t)emulated_from_lane((uintptr_t)p.held, (emulated_lane() & ~3u) + h));
}
// `count` elements of row q (+ 8 if `high`) that the quad q holds: four bytes in each thread, then those 16 bytes further.
template <class Sum>
static void emulated_held_elements(const EmulatedProduct<Sum> &p, int high, int count, float *elements) {
    const int size = emulated_size(p.type);
    for (int i = 0; i < count; i++) {
        const int byte = size * i;
        const unsigned bits = p.quad[byte % 16 / 4][byte / 16 * 2 + high] >> (8 * (byte % 4));
        elements[i] = emulated_number((unsigned short)(size == 1 ? bits & 0xff : bits & 0xffff), p.type);
    }
}

// A thread's own part: rows 16 w + q and + 8 of its warp w and quad q, two neighbouring columns of every eight. Element
// k of row `high` of A meets row `meets[high][k]` of the `deep` ones of B.
template <class Sum>
static void emulated_multiply(const EmulatedProduct<Sum> &p, int deep, const int (&meets)[2][32]) {
    const int thread = threadIdx.x % 128, row = thread / 32 * 16 + thread % 32 / 4, kept = 32 / emulated_size(p.type);
    float rows[2][32], column[64];
    for (int high = 0; high < 2; high++) {
        if (p.held)
            emulated_held_elements(p, high, kept, rows[high]);
        else
            emulated_elements(p.a, row + high * 8, kept, p.type, rows[high]);
    }
    for (int i = 0; i < p.columns / 2; i += 4) {
        for (int j = 0; j < 2; j++) {
            emulated_elements(p.b, i / 4 * 8 + thread % 4 * 2 + j, deep, p.type, column);
            for (int high = 0; high < 2; high++) {
                Sum total = 0, &sum = p.sums[i + 2 * high + j];
                for (int k = 0; k < kept; k++) total += (Sum)(rows[high][k] * column[meets[high][k]]);
                sum = (p.keep ? sum : 0) + total;
            }
        }
    }
}
template <class Sum> void emulated_dense(EmulatedProduct<Sum> product) {
    emulated_meet_quad(product);
    emulated_issue([=] {
        int meets[2][32];
        for (int k = 0; k < 64; k++) meets[k / 32][k % 32] = k % 32;
        emulated_multiply(product, 32 / emulated_size(product.type), meets);
    });
}
template <class Sum> void emulated_sparse(EmulatedProduct<Sum> product, unsigned places, int selector) {
    emulated_meet_quad(product);
    const bool eight = emulated_size(product.type) == 1;
    std::array<unsigned, 4> words = {};  // of the quad's threads that are read: all, or the two that the selector names
    for (int h = 0; h < (eight ? 4 : 2); h++)
        words[h] = emulated_from_lane(places, (emulated_lane() & ~3u) + 2 * selector + h);
    emulated_issue([=] {
        int meets[2][32];
        for (int high = 0; high < 2; high++)
            for (int k = 0; k < (eight ? 32 : 16); k++) {
                const int group = k / 2;
                meets[high][k] = group * 4 + (eight ? emulated_place(words[group / 8 * 2 + high], group % 8, k % 2)
                                                    : emulated_place(words[group / 4], 4 * high + group % 4, k % 2));
            }
        emulated_multiply(product, eight ? 64 : 32, meets);
    });
}
template void emulated_dense(EmulatedProduct<float>);
template void emulated_dense(EmulatedProduct<int>);
template void emulated_sparse(EmulatedProduct<float>, unsigned, int);
template void emulated_sparse(EmulatedProduct<int>, unsigned, int);
