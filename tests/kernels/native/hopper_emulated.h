// Hopper's asynchronous machinery on the CPU, as hopper.h declares it; included behind cuda_emulated.h.
//
// Copies happen at once, products as shared_memory_emulated.h says.
#pragma once

#define __grid_constant__

#define CLUSTER_OF(blocks)

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
inline EmulatedBarrier &emulated_barrier_in(unsigned rank, unsigned address) {
    if (address % 8) __builtin_trap();
    return *reinterpret_cast<EmulatedBarrier *>(emulated_in(rank, address, 8));
}
inline EmulatedBarrier &emulated_barrier(unsigned address) { return emulated_barrier_in(emulated_rank(), address); }
inline void barrier_make(unsigned address, unsigned arrivals) {
    emulated_barrier(address) = {(short)arrivals, (short)arrivals, 0};
}
inline void barriers_made() {}
inline void barrier_arrive(unsigned address) {
    emulated_barrier(address).missing--;
    emulated_barrier(address).settle();
}
inline void barrier_arrive_in(unsigned rank, unsigned address) {
    emulated_barrier_in(rank, address).missing--;
    emulated_barrier_in(rank, address).settle();
}
inline unsigned rank_in_cluster() { return emulated_rank(); }
inline void load_from(unsigned rank, unsigned address, Sum (&values)[8]) {
    if (address % 16) __builtin_trap();
    memcpy(values, emulated_in(rank, address, 32), 32);
}
inline void cluster_gathers() { emulated_wait(EmulatedFibre::AT_CLUSTER); }
inline void cluster_meets() { emulated_wait(EmulatedFibre::AT_CLUSTER); }
inline void barrier_expect(unsigned address, unsigned bytes) {
    emulated_barrier(address).bytes_and_phase += 2 * (int)bytes;
    barrier_arrive(address);
}
inline void emulated_came(unsigned rank, unsigned address, unsigned bytes) {
    emulated_barrier_in(rank, address).bytes_and_phase -= 2 * (int)bytes;
    emulated_barrier_in(rank, address).settle();
}
inline void barrier_wait(unsigned address, unsigned parity) {
    if (parity > 1) __builtin_trap();
    emulated_wait_until([=] { return (unsigned)(emulated_barrier(address).bytes_and_phase & 1) != parity; });
}
inline void threads_meet(int number, int threads) { emulated_meet(number, threads); }

constexpr int EMULATED_SIZE = EIGHT_BITS ? 1 : 2;  // bytes of an element

// What the tests give in place of the driver's map. `mode` 0: a matrix [rows, channels], 1: an image [n, h, w, channels],
// whose taps' base pixels go from `low` to the last pixel plus `high`, by `step`; 2: an image of which `lines` lines of
// `box` pixels are copied. Pixels, lines and images begin so many elements apart, and may overlap.
struct alignas(64) TensorMap {
    const unsigned char *base;
    int mode, channels, n, h, w, box, low_w, low_h, high_w, high_h, step_w, step_h, lines;
    int pixel_apart, line_apart, image_apart;
    unsigned char rest[128 - 8 - 16 * 4];
    long long first_of(int image, int y, int x) const {
        return (long long)image * image_apart + (long long)y * line_apart + (long long)x * pixel_apart;
    }
};
static_assert(sizeof(TensorMap) == 128, "");
inline void fetch_map(const TensorMap &) {}

inline void copy_bytes(unsigned address, const void *from, unsigned bytes, unsigned barrier) {
    if (address % 16 || bytes % 16 || (uintptr_t)from % 16) __builtin_trap();
    memcpy(emulated_at(address, bytes), from, bytes);
    emulated_came(emulated_rank(), barrier, bytes);
}
// 128 bytes of a pixel, whose element 0 is `pixel`, or zeros, as row `row` of a tile in the 128-byte swizzle.
inline void emulated_row(unsigned rank, unsigned address, int row, const TensorMap &map, bool inside, long long pixel,
                         int channel) {
    const bool aligned = (map.pixel_apart | map.line_apart | map.image_apart) * EMULATED_SIZE % 16 == 0;
    if (address % 1024 || !aligned) __builtin_trap();
    const long long first = (pixel + channel) * EMULATED_SIZE;
    for (int byte = 0; byte < 128; byte++) {
        const unsigned at = address + row * 128 + byte, swizzled = at ^ (at >> 7 & 7) << 4;
        const bool exists = inside && channel + byte / EMULATED_SIZE < map.channels;
        *emulated_in(rank, swizzled, 1) = exists ? map.base[first + byte] : 0;
    }
}
// A copy goes to the same place in each block of the cluster, and completes on each one's barrier; with SPLIT to its own.
template <class Copy> void emulated_everywhere(unsigned barrier, unsigned bytes, Copy copy) {
    for (unsigned rank = SPLIT ? emulated_rank() : 0; rank < (SPLIT ? emulated_rank() + 1 : CLUSTER); rank++) {
        copy(rank);
        emulated_came(rank, barrier, bytes);
    }
}
inline void copy_rows(unsigned address, const TensorMap &map, int channel, int row, unsigned barrier) {
    if (map.mode != 0 || map.channels * EMULATED_SIZE % 16) __builtin_trap();
    emulated_everywhere(barrier, map.box * 128, [&](unsigned rank) {
        for (int i = 0; i < map.box; i++) emulated_row(rank, address, i, map, row + i < map.n, map.first_of(0, 0, row + i), channel);
    });
}
inline void copy_pixels(unsigned address, const TensorMap &map, int channel, int w, int h, int n, int right, int down,
                        unsigned barrier) {
    if (map.mode != 1 || map.channels * EMULATED_SIZE % 16) __builtin_trap();
    if (right < 0 || right > 255 || down < 0 || down > 255) __builtin_trap();
    emulated_everywhere(barrier, map.box * 128, [&](unsigned rank) {
        int base_w = w, base_h = h, base_n = n;
        for (int i = 0; i < map.box; i++) {
            const int x = base_w + right, y = base_h + down;
            const bool inside = base_n < map.n && x >= 0 && x < map.w && y >= 0 && y < map.h;
            emulated_row(rank, address, i, map, inside, map.first_of(base_n, y, x), channel);
            base_w += map.step_w;
            if (base_w > map.w - 1 + map.high_w) base_w = map.low_w, base_h += map.step_h;
            if (base_h > map.h - 1 + map.high_h) base_h = map.low_h, base_n++;
        }
    });
}

inline void copy_lines(unsigned address, const TensorMap &map, int channel, int w, int h, int n, unsigned barrier) {
    if (map.mode != 2 || map.channels * EMULATED_SIZE % 16 || map.box > 256 || map.lines > 256) __builtin_trap();
    emulated_everywhere(barrier, map.lines * map.box * 128, [&](unsigned rank) {
        for (int i = 0; i < map.lines * map.box; i++) {
            const int x = w + i % map.box, y = h + i / map.box;
            const bool inside = n < map.n && x >= 0 && x < map.w && y >= 0 && y < map.h;
            emulated_row(rank, address, i, map, inside, map.first_of(n, y, x), channel);
        }
    });
}
// Reads the first and the last byte: they must be there.
inline void fetch_to_cache(const void *from, unsigned bytes) {
    if (bytes % 16 || (uintptr_t)from % 16) __builtin_trap();
    const volatile unsigned char *at = static_cast<const unsigned char *>(from);
    (void)at[0], (void)at[bytes - 1];
}

inline void copy(unsigned address, const void *from) {
    if (address % 16 || (uintptr_t)from % 16) __builtin_trap();
    emulated_issue([=] { memcpy(emulated_at(address, 16), from, 16); });
}
inline void copies_commit() { emulated_commit(); }
template <int pending> inline void copies_wait() { emulated_finish(pending); }

// Element (row, column) of a lane's words: which lane has the address of its column, and the byte there.
template <class Move> inline void emulated_turn(unsigned address, Move move) {
    if (address % 16) __builtin_trap();
    const unsigned lane = emulated_lane();
    for (unsigned matrix = 0; matrix < 4; matrix++)
        for (unsigned half = 0; half < 2; half++) {
            const unsigned column = emulated_from_lane(address, 8 * matrix + lane % 4 * 2 + half);
            move(matrix, half, reinterpret_cast<unsigned short *>(emulated_at(column + lane / 4 * 2, 2)));
        }
}
inline void load_turned(unsigned address, unsigned (&words)[4]) {
    unsigned found[4] = {};
    emulated_turn(address, [&](unsigned matrix, unsigned half, const unsigned short *at) {
        found[matrix] |= (unsigned)*at << (16 * half);
    });
    memcpy(words, found, sizeof found);
}
inline void store_turned(unsigned address, const unsigned (&words)[4]) {
    emulated_turn(address, [&](unsigned matrix, unsigned half, unsigned short *at) {
        *at = (unsigned short)(words[matrix] >> (16 * half));
    });
}

template <int count> inline void take_registers() {}
template <int count> inline void give_registers() {}

// --- wgmma ---

inline void products_begin() {}
inline void products_commit() { emulated_commit(); }
template <int pending> inline void products_wait() { emulated_finish(pending); }
template <int count> inline void hold_registers(const unsigned (&)[count]) {}

// An element of an operand in K-major order: row and column within the instruction's part of it.
inline float emulated_element(unsigned long long operand, int row, int column) {
    const int byte = column * EMULATED_SIZE;
    const unsigned start = (operand & 0x3fff) << 4, leading = (operand >> 16 & 0x3fff) << 4;
    const unsigned stride = (operand >> 32 & 0x3fff) << 4, swizzle = operand >> 62;
    unsigned at = start + row / 8 * stride;
    if (swizzle == 0)
        at += byte / 16 * leading + row % 8 * 16 + byte % 16;
    else if (swizzle == 1)
        at += row % 8 * 128 + byte, at ^= (at >> 7 & 7) << 4;
    else
        __builtin_trap();
    if (EIGHT_BITS) return emulated_number(*emulated_at(at, 1));
    return emulated_number(*reinterpret_cast<const unsigned short *>(emulated_at(at, 2)));
}

template <int N> struct Product {
    static constexpr int KEPT = 32 / EMULATED_SIZE;  // elements of a row of A
    // A thread's own part: rows 16 w + q and + 8 of its warp w and quad q, two neighbouring columns of every eight.
    // `place_of` tells which row of B meets an element of A.
    template <class PlaceOf>
    static void issue(Sum (&d)[N / 2], unsigned long long a, unsigned long long b, int keep, PlaceOf place_of) {
        emulated_issue([=, &d] {
            const int thread = threadIdx.x % 128, row = thread / 32 * 16 + thread % 32 / 4;
            for (int i = 0; i < N / 2; i++) {
                const int column = i / 4 * 8 + thread % 4 * 2 + i % 2, high = i / 2 % 2;
                Sum total = 0;
                for (int k = 0; k < KEPT; k++) {
                    const float other = emulated_element(b, column, place_of(high, k));
                    total += (Sum)(emulated_element(a, row + high * 8, k) * other);
                }
                d[i] = (keep ? d[i] : (Sum)0) + total;
            }
        });
    }
    static void dense(Sum (&d)[N / 2], unsigned long long a, unsigned long long b, int keep) {
        issue(d, a, b, keep, [](int, int k) { return k; });
    }
    template <int selector>
    static void sparse(Sum (&d)[N / 2], unsigned long long a, unsigned long long b, unsigned places, int keep) {
        static_assert(selector == 0 || !EIGHT_BITS, "in 8 bits all threads of a quad are read");
        std::array<unsigned, EIGHT_BITS ? 4 : 2> words;  // of the quad's threads that are read
        for (unsigned h = 0; h < words.size(); h++)
            words[h] = emulated_from_lane(places, (emulated_lane() & ~3u) + 2 * selector + h);
        issue(d, a, b, keep, [=](int high, int k) {
            const int group = k / 2;
            const int place = EIGHT_BITS ? emulated_place(words[group / 8 * 2 + high], group % 8, k % 2)
                                         : emulated_place(words[group / 4], 4 * high + group % 4, k % 2);
            return group * 4 + place;
        });
    }
};
