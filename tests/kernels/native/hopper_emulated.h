// Hopper's asynchronous machinery on the CPU, as hopper.h declares it; included behind cuda_emulated.h.
//
// Copies happen at once, products as emulation.h says.
#pragma once

#define __grid_constant__

#define CLUSTER_OF(blocks)

void barrier_make(unsigned address, unsigned arrivals);
inline void barriers_made() {}
void barrier_arrive(unsigned address);
void barrier_arrive_in(unsigned rank, unsigned address);
void barrier_expect(unsigned address, unsigned bytes);
void barrier_wait(unsigned address, unsigned parity);
void threads_meet(int number, int threads);
inline void warp_meets() {}  // its threads have met in a product
unsigned rank_in_cluster();
void cluster_gathers();
inline void written_for_copies() {}
void copy_to(unsigned rank, unsigned address, unsigned from, unsigned bytes, unsigned barrier);

// What the tests give in place of the driver's map. `mode` 0: a matrix [rows, channels], 1: an image [n, h, w, channels],
// whose taps' base pixels go from `low` to the last pixel plus `high`, by `step`; 2: an image of which `lines` lines of
// `box` pixels are copied. Pixels, lines and images begin so many elements apart, and may overlap.
struct alignas(64) TensorMap {
    const unsigned char *base;
    int mode, channels, n, h, w, box, low_w, low_h, high_w, high_h, step_w, step_h, lines;
    int pixel_apart, line_apart, image_apart;
    int windows;  // 0: none; else from how many places of a pixel, 16 bytes apart, its channels may be taken
    unsigned char rest[128 - 8 - 17 * 4];
    long long first_of(int image, int y, int x) const {
        return (long long)image * image_apart + (long long)y * line_apart + (long long)x * pixel_apart;
    }
};
static_assert(sizeof(TensorMap) == 128, "");
inline void fetch_map(const TensorMap &) {}

void copy_bytes(unsigned address, const void *from, unsigned bytes, unsigned barrier);
// Of elements of a type, to each block of the cluster, or to their own alone.
struct EmulatedCopy {
    char type;
    bool alone;
};
void emulated_copy_rows(EmulatedCopy, unsigned address, const TensorMap &map, int channel, int row, unsigned barrier);
void emulated_copy_pixels(EmulatedCopy, unsigned address, const TensorMap &map, int channel, int w, int h, int n,
                          int right, int down, unsigned barrier);
void emulated_copy_lines(EmulatedCopy, unsigned address, const TensorMap &map, int channel, int w, int h, int n,
                         unsigned barrier);
// Reads the first and the last byte: they must be there.
inline void fetch_to_cache(const void *from, unsigned bytes) {
    if (bytes % 16 || (uintptr_t)from % 16) __builtin_trap();
    const volatile unsigned char *at = static_cast<const unsigned char *>(from);
    (void)at[0], (void)at[bytes - 1];
}

void load_turned(unsigned address, unsigned (&words)[4]);
void store_turned(unsigned address, const unsigned (&words)[4]);

template <int count> inline void take_registers() {}
template <int count> inline void give_registers() {}

inline void products_begin() {}
void products_commit();
void emulated_products_wait(int pending);
template <int pending> inline void products_wait() { emulated_products_wait(pending); }
template <int count> inline void hold_registers(const unsigned (&)[count]) {}

// A thread's part of a product of so many columns. `held`: its registers of operand A, else this lies at `a`.
template <class Sum> struct EmulatedProduct {
    Sum *sums;
    int columns, keep;
    unsigned long long a, b;
    char type;
    const unsigned *held = nullptr;
    const unsigned *quad[4] = {};  // held, of the threads of the quad
};
template <class Sum> void emulated_dense(EmulatedProduct<Sum> product);
template <class Sum> void emulated_sparse(EmulatedProduct<Sum> product, unsigned places, int selector);

#ifdef PRODUCT_TYPE  // what depends on a kernel's constants
inline void copy_if(bool exists, unsigned address, const void *from) {
    if (exists) copy(address, from);
}
inline void store_if(bool exists, void *to, const FourWords &words) {
    if (exists) *static_cast<FourWords *>(to) = words;
}
static const EmulatedCopy emulated_copy = {*PRODUCT_TYPE, SPLIT};
inline void copy_rows(unsigned address, const TensorMap &map, int channel, int row, unsigned barrier) {
    emulated_copy_rows(emulated_copy, address, map, channel, row, barrier);
}
inline void copy_pixels(unsigned address, const TensorMap &map, int channel, int w, int h, int n, int right, int down,
                        unsigned barrier) {
    emulated_copy_pixels(emulated_copy, address, map, channel, w, h, n, right, down, barrier);
}
inline void copy_lines(unsigned address, const TensorMap &map, int channel, int w, int h, int n, unsigned barrier) {
    emulated_copy_lines(emulated_copy, address, map, channel, w, h, n, barrier);
}
// From windows. The map of one of them is that of pixels with its channels alone.
inline TensorMap emulated_window(const TensorMap &map, int window) {
    if (window < 0 || window >= map.windows || (CLUSTER > 1 && !SPLIT)) __builtin_trap();
    TensorMap seen = map;
    seen.base += 16 * window, seen.windows = 0;
    return seen;
}
inline void copy_rows(unsigned address, const TensorMap &map, int channel, int row, int window, unsigned barrier) {
    copy_rows(address, emulated_window(map, window), channel, row, barrier);
}
inline void copy_pixels(unsigned address, const TensorMap &map, int channel, int w, int h, int n, int window, int right,
                        int down, unsigned barrier) {
    if (right > 31 || down > 31) __builtin_trap();
    copy_pixels(address, emulated_window(map, window), channel, w, h, n, right, down, barrier);
}
inline void copy_lines(unsigned address, const TensorMap &map, int channel, int w, int h, int n, int window,
                       unsigned barrier) {
    copy_lines(address, emulated_window(map, window), channel, w, h, n, barrier);
}
template <int N> struct Product {
    static void dense(Sum (&d)[N / 2], unsigned long long a, unsigned long long b, int keep) {
        emulated_dense<Sum>({d, N, keep, a, b, *PRODUCT_TYPE});
    }
    template <int selector>
    static void sparse(Sum (&d)[N / 2], unsigned long long a, unsigned long long b, unsigned places, int keep) {
        static_assert(selector == 0 || !EIGHT_BITS, "in 8 bits all threads of a quad are read");
        emulated_sparse<Sum>({d, N, keep, a, b, *PRODUCT_TYPE}, places, selector);
    }
    static void held_dense(Sum (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, int keep) {
        emulated_dense<Sum>({d, N, keep, 0, b, *PRODUCT_TYPE, a});
    }
    template <int selector>
    static void held_sparse(Sum (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, unsigned places, int keep) {
        static_assert(selector == 0 || !EIGHT_BITS, "in 8 bits all threads of a quad are read");
        emulated_sparse<Sum>({d, N, keep, 0, b, *PRODUCT_TYPE, a}, places, selector);
    }
};
#endif
