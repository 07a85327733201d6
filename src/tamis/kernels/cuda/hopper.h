// Hopper's asynchronous machinery as functions: barriers in shared memory, the tensor memory accelerator, wgmma.
//
// PTX ISA 9.0, sections on mbarrier, cp.async.bulk, and wgmma. Under the tests' emulation the same functions come from
// hopper_emulated.h. `address` is always one in shared memory, of 32 bits.
//
// Constants: CLUSTER, the blocks that run together; SPLIT, 1 if each copies for itself from tensor maps, 0 if for all of
// them; PRODUCT_TYPE, "f16", "bf16", "s8" or "e4m3"; EIGHT_BITS, 1 for the last two; INTEGERS, 1 for "s8".
#pragma once

#include "shared_memory.h"

// What products add up in.
#if INTEGERS
using Sum = int;
#else
using Sum = float;
#endif

#ifndef TAMIS_EMULATED

// How assembly calls a sum: the type, and the kind of register.
#if INTEGERS
#define TAMIS_SUM "s32"
#define TAMIS_REGISTER "r"
#else
#define TAMIS_SUM "f32"
#define TAMIS_REGISTER "f"
#endif

struct alignas(64) TensorMap {
    unsigned long long words[16];
};

// Lists of registers for assembly: `how` is "+f" or "+r", or "=" in place of the "+".
#define TAMIS_4(how, d, i) how(d[i]), how(d[i + 1]), how(d[i + 2]), how(d[i + 3])
#define TAMIS_8(how, d, i) TAMIS_4(how, d, i), TAMIS_4(how, d, i + 4)
#define TAMIS_12(how, d, i) TAMIS_8(how, d, i), TAMIS_4(how, d, i + 8)

// --- barriers ---

TAMIS_DEVICE void barrier_make(unsigned address, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
}
// Makes new barriers known to the copy engine.
TAMIS_DEVICE void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Arrives, and lets the barrier's phase wait for so many bytes more.
TAMIS_DEVICE void barrier_expect(unsigned address, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
}
TAMIS_DEVICE void barrier_arrive(unsigned address) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
}
// Waits until the phase of this parity is over.
TAMIS_DEVICE void barrier_wait(unsigned address, unsigned parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}\n" ::"r"(address), "r"(parity) : "memory");
}
// A barrier of `threads` threads, one of sixteen; 0 is __syncthreads.
TAMIS_DEVICE void threads_meet(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
TAMIS_DEVICE void warp_meets() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

// --- clusters: neighbouring blocks that run at the same time ---

#if CLUSTER > 1
#define CLUSTER_OF(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTER_OF(blocks)
#endif
TAMIS_DEVICE unsigned rank_in_cluster() {
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Waits for all threads of the cluster that have not ended; says nothing about memory.
TAMIS_DEVICE void cluster_gathers() {
    asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
}
// What this thread wrote to shared memory may be copied from there, by whoever meets it.
TAMIS_DEVICE void written_for_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Contiguous bytes, a multiple of 16, from here to this address in another block, which completes on the barrier of that
// address there.
TAMIS_DEVICE void copy_to(unsigned rank, unsigned address, unsigned from, unsigned bytes, unsigned barrier) {
    asm volatile(
        "{\n"
        ".reg .b32 there, done;\n"
        "mapa.shared::cluster.u32 there, %0, %4;\n"
        "mapa.shared::cluster.u32 done, %3, %4;\n"
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [there], [%1], %2, [done];\n"
        "}\n" ::"r"(address),
        "r"(from), "r"(bytes), "r"(barrier), "r"(rank)
        : "memory");
}
// Arrives at the barrier of this address in another block. Without a scope: `.cluster` costs a fence of the whole GPU,
// about 0.7 us, and what was read here needs none.
TAMIS_DEVICE void barrier_arrive_in(unsigned rank, unsigned address) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}\n" ::"r"(address), "r"(rank)
        : "memory");
}

// --- copies into shared memory that complete on a barrier ---
// What comes from a tensor map goes to the same address of all blocks of the cluster, and completes on each one's barrier,
// unless SPLIT.
#define TAMIS_RECEIVERS (SPLIT ? 1 : CLUSTER)
#if TAMIS_RECEIVERS > 1
#define TAMIS_TO_ALL ".multicast::cluster"
#define TAMIS_BLOCKS(number) ", %" #number
#else
#define TAMIS_TO_ALL ""
#define TAMIS_BLOCKS(number) ""
#endif
#define TAMIS_EVERY_BLOCK "h"((unsigned short)((1 << TAMIS_RECEIVERS) - 1))

// Contiguous bytes, a multiple of 16.
TAMIS_DEVICE void copy_bytes(unsigned address, const void *from, unsigned bytes, unsigned barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
// A box of a matrix [rows, channels]; what lies outside is zero.
TAMIS_DEVICE void copy_rows(unsigned address, const TensorMap &map, int channel, int row, unsigned barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes" TAMIS_TO_ALL
                 " [%0], [%1, {%2, %3}], [%4]" TAMIS_BLOCKS(5) ";" ::"r"(address),
                 "l"(&map), "r"(channel), "r"(row), "r"(barrier), TAMIS_EVERY_BLOCK
                 : "memory");
}
// Pixels of an image [n, h, w, channels] that a filter's tap (right, down) sees, from that of base (w, h, n) on.
TAMIS_DEVICE void copy_pixels(unsigned address, const TensorMap &map, int channel, int w, int h, int n, int right, int down,
                              unsigned barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes" TAMIS_TO_ALL
        " [%0], [%1, {%2, %3, %4, %5}], [%6], {%7, %8}" TAMIS_BLOCKS(9) ";" ::"r"(address),
        "l"(&map), "r"(channel), "r"(w), "r"(h), "r"(n), "r"(barrier), "h"((unsigned short)right),
        "h"((unsigned short)down), TAMIS_EVERY_BLOCK
        : "memory");
}
// A box of an image [n, h, w, channels]: lines from (w, h, n) on, which may begin before the image; what lies outside is zero.
TAMIS_DEVICE void copy_lines(unsigned address, const TensorMap &map, int channel, int w, int h, int n, unsigned barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(address),
        "l"(&map), "r"(channel), "r"(w), "r"(h), "r"(n), "r"(barrier)
        : "memory");
}
// The same from a map of windows: of each pixel the channels from 16 bytes times `window` on, as if it had no others. For
// one block alone. Windows are the second axis, but in im2col mode the last one, since it walks along all between.
TAMIS_DEVICE void copy_rows(unsigned address, const TensorMap &map, int channel, int row, int window, unsigned barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(address),
        "l"(&map), "r"(channel), "r"(window), "r"(row), "r"(barrier)
        : "memory");
}
TAMIS_DEVICE void copy_pixels(unsigned address, const TensorMap &map, int channel, int w, int h, int n, int window,
                              int right, int down, unsigned barrier) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3, %4, %5, %6}], [%7], {%8, %9, %10};" ::"r"(address),
        "l"(&map), "r"(channel), "r"(w), "r"(h), "r"(n), "r"(window), "r"(barrier), "h"((unsigned short)right),
        "h"((unsigned short)down), "h"((unsigned short)0)
        : "memory");
}
TAMIS_DEVICE void copy_lines(unsigned address, const TensorMap &map, int channel, int w, int h, int n, int window,
                             unsigned barrier) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(address),
        "l"(&map), "r"(channel), "r"(window), "r"(w), "r"(h), "r"(n), "r"(barrier)
        : "memory");
}
// Contiguous bytes, a multiple of 16, into the L2 cache.
TAMIS_DEVICE void fetch_to_cache(const void *from, unsigned bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
TAMIS_DEVICE void fetch_map(const TensorMap &map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// 16 bytes where they `exist`: past the registers into shared memory, and to far memory. Without a branch, around which
// nothing else could be arranged. A thread's copies since the last commit are a group, and it waits until so many are left.
TAMIS_DEVICE void copy_if(bool exists, unsigned address, const void *from) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %2, 0;\n"
        "@p cp.async.cg.shared.global [%0], [%1], 16;\n"
        "}\n" ::"r"(address),
        "l"(from), "r"((int)exists)
        : "memory");
}
TAMIS_DEVICE void store_if(bool exists, void *to, const FourWords &words) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %5, 0;\n"
        "@p st.global.v4.b32 [%0], {%1, %2, %3, %4};\n"
        "}\n" ::"l"(to),
        "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w), "r"((int)exists)
        : "memory");
}
TAMIS_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending> TAMIS_DEVICE void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// --- matrices of 8 x 8 values of 16 bits, which a warp turns on their way: lane 8 m + c gives the address of column c of
// matrix m; word m of lane 4 q + h has row q of matrix m, columns 2 h and 2 h + 1 ---

TAMIS_DEVICE void load_turned(unsigned address, unsigned (&words)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}
TAMIS_DEVICE void store_turned(unsigned address, const unsigned (&words)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}

// --- registers ---

template <int count> TAMIS_DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count> TAMIS_DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

// --- wgmma ---

// Before the first product, and whenever registers that products use were written.
TAMIS_DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TAMIS_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending> TAMIS_DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// These values lie in their registers until here: products that read them may run that long.
template <int count> TAMIS_DEVICE void hold_registers(const unsigned (&values)[count]) {
#pragma unroll
    for (int i = 0; i < count; i++) asm volatile("" ::"r"(values[i]));
}

#define TAMIS_32(how, d, i) TAMIS_8(how, d, i), TAMIS_8(how, d, i + 8), TAMIS_8(how, d, i + 16), TAMIS_8(how, d, i + 24)
#define TAMIS_36(how, d, i) TAMIS_32(how, d, i), TAMIS_4(how, d, i + 32)
#define TAMIS_48(how, d, i) TAMIS_32(how, d, i), TAMIS_8(how, d, i + 32), TAMIS_8(how, d, i + 40)
#define TAMIS_56(how, d, i) TAMIS_48(how, d, i), TAMIS_8(how, d, i + 48)
#define TAMIS_60(how, d, i) TAMIS_32(how, d, i), TAMIS_8(how, d, i + 32), TAMIS_8(how, d, i + 40), TAMIS_12(how, d, i + 48)
#define TAMIS_64(how, d, i) TAMIS_32(how, d, i), TAMIS_32(how, d, i + 32)
#define TAMIS_72(how, d, i) TAMIS_64(how, d, i), TAMIS_8(how, d, i + 64)
#define TAMIS_80(how, d, i) TAMIS_72(how, d, i), TAMIS_8(how, d, i + 72)
#define TAMIS_88(how, d, i) TAMIS_80(how, d, i), TAMIS_8(how, d, i + 80)
#define TAMIS_92(how, d, i) TAMIS_88(how, d, i), TAMIS_4(how, d, i + 88)
#define TAMIS_96(how, d, i) TAMIS_64(how, d, i), TAMIS_32(how, d, i + 64)
#define TAMIS_100(how, d, i) TAMIS_96(how, d, i), TAMIS_4(how, d, i + 96)
#define TAMIS_104(how, d, i) TAMIS_96(how, d, i), TAMIS_8(how, d, i + 96)
#define TAMIS_112(how, d, i) TAMIS_104(how, d, i), TAMIS_8(how, d, i + 104)
#define TAMIS_116(how, d, i) TAMIS_112(how, d, i), TAMIS_4(how, d, i + 112)
#define TAMIS_128(how, d, i) TAMIS_96(how, d, i), TAMIS_32(how, d, i + 96)
#define TAMIS_NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TAMIS_NAMES_36 \
    TAMIS_NAMES_32 ", " \
    "%32, %33, %34, %35"
#define TAMIS_NAMES_48 \
    TAMIS_NAMES_36 ", " \
    "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define TAMIS_NAMES_56 \
    TAMIS_NAMES_48 ", " \
    "%48, %49, %50, %51, %52, %53, %54, %55"
#define TAMIS_NAMES_60 \
    TAMIS_NAMES_56 ", " \
    "%56, %57, %58, %59"
#define TAMIS_NAMES_64 \
    TAMIS_NAMES_60 ", " \
    "%60, %61, %62, %63"
#define TAMIS_NAMES_72 \
    TAMIS_NAMES_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71"
#define TAMIS_NAMES_80 \
    TAMIS_NAMES_72 ", " \
    "%72, %73, %74, %75, %76, %77, %78, %79"
#define TAMIS_NAMES_88 \
    TAMIS_NAMES_80 ", " \
    "%80, %81, %82, %83, %84, %85, %86, %87"
#define TAMIS_NAMES_92 \
    TAMIS_NAMES_88 ", " \
    "%88, %89, %90, %91"
#define TAMIS_NAMES_96 \
    TAMIS_NAMES_92 ", " \
    "%92, %93, %94, %95"
#define TAMIS_NAMES_100 \
    TAMIS_NAMES_96 ", " \
    "%96, %97, %98, %99"
#define TAMIS_NAMES_104 \
    TAMIS_NAMES_100 ", " \
    "%100, %101, %102, %103"
#define TAMIS_NAMES_112 \
    TAMIS_NAMES_104 ", " \
    "%104, %105, %106, %107, %108, %109, %110, %111"
#define TAMIS_NAMES_116 \
    TAMIS_NAMES_112 ", " \
    "%112, %113, %114, %115"
#define TAMIS_NAMES_128 \
    TAMIS_NAMES_112 ", " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// How products of a type are called: 32 bytes of a row of A, k in 2:4, and what is said at the end: that nothing is
// negated, and in 16 bits that nothing is transposed.
#if EIGHT_BITS
#define TAMIS_DEPTH "k32"
#define TAMIS_SPARSE_DEPTH "k64"
#else
#define TAMIS_DEPTH "k16"
#define TAMIS_SPARSE_DEPTH "k32"
#endif
#if INTEGERS
#define TAMIS_AS_IS ""
#define TAMIS_HELD_AS_IS ""
#elif EIGHT_BITS
#define TAMIS_AS_IS ", 1, 1"
#define TAMIS_HELD_AS_IS ", 1, 1"
#else
#define TAMIS_AS_IS ", 1, 1, 0, 0"
#define TAMIS_HELD_AS_IS ", 1, 1, 0"
#endif
#define TAMIS_TYPES TAMIS_SUM "." PRODUCT_TYPE "." PRODUCT_TYPE

// sums += A (64 x k, in shared memory) times B (k x N): dense with k = 16, or 2:4 with k = 32, where A has the kept
// halves and `places` tells where they were. In 8 bits k is twice that, and the selector 0. `keep` 0: they start anew.
// In the held forms A lies in registers of the warpgroup: warp w has rows 16 w to 16 w + 15, and lane 4 q + h of it four
// words of 4 bytes: row q, bytes 4 h to 4 h + 3, row q + 8, then both rows 16 bytes further. They must not be written before
// the product is done.
template <int N> struct Product;
#define TAMIS_PRODUCT(N, R, A, B, C, D, E, F, G, H)                                                              \
    template <> struct Product<N> {                                                                              \
        static __device__ __forceinline__ void dense(Sum (&d)[R], unsigned long long a, unsigned long long b,    \
                                                     int keep) {                                                 \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #C ", 0;\n"                                        \
                         "wgmma.mma_async.sync.aligned.m64n" #N TAMIS_DEPTH "." TAMIS_TYPES " {" TAMIS_NAMES_##R \
                         "}, %" #A ", %" #B ", p" TAMIS_AS_IS ";\n}\n"                                           \
                         : TAMIS_##R("+" TAMIS_REGISTER, d, 0)                                                   \
                         : "l"(a), "l"(b), "r"(keep));                                                           \
        }                                                                                                        \
        template <int selector>                                                                                  \
        static __device__ __forceinline__ void sparse(Sum (&d)[R], unsigned long long a, unsigned long long b,   \
                                                      unsigned places, int keep) {                               \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #E ", 0;\n"                                        \
                         "wgmma.mma_async.sp.sync.aligned.m64n" #N TAMIS_SPARSE_DEPTH "." TAMIS_TYPES            \
                         " {" TAMIS_NAMES_##R "}, %" #A ", %" #B ", %" #C ", %" #D ", p" TAMIS_AS_IS ";\n}\n"    \
                         : TAMIS_##R("+" TAMIS_REGISTER, d, 0)                                                   \
                         : "l"(a), "l"(b), "r"(places), "n"(selector), "r"(keep));                               \
        }                                                                                                        \
        static __device__ __forceinline__ void held_dense(Sum (&d)[R], const unsigned (&a)[4],                   \
                                                          unsigned long long b, int keep) {                      \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #F ", 0;\n"                                        \
                         "wgmma.mma_async.sync.aligned.m64n" #N TAMIS_DEPTH "." TAMIS_TYPES " {" TAMIS_NAMES_##R \
                         "}, {%" #A ", %" #B ", %" #C ", %" #D "}, %" #E ", p" TAMIS_HELD_AS_IS ";\n}\n"         \
                         : TAMIS_##R("+" TAMIS_REGISTER, d, 0)                                                   \
                         : TAMIS_4("r", a, 0), "l"(b), "r"(keep));                                               \
        }                                                                                                        \
        template <int selector>                                                                                  \
        static __device__ __forceinline__ void held_sparse(Sum (&d)[R], const unsigned (&a)[4],                  \
                                                           unsigned long long b, unsigned places, int keep) {    \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #H ", 0;\n"                                        \
                         "wgmma.mma_async.sp.sync.aligned.m64n" #N TAMIS_SPARSE_DEPTH "." TAMIS_TYPES            \
                         " {" TAMIS_NAMES_##R "}, {%" #A ", %" #B ", %" #C ", %" #D "}, %" #E ", %" #F ", %" #G  \
                         ", p" TAMIS_HELD_AS_IS ";\n}\n"                                                         \
                         : TAMIS_##R("+" TAMIS_REGISTER, d, 0)                                                   \
                         : TAMIS_4("r", a, 0), "l"(b), "r"(places), "n"(selector), "r"(keep));                   \
        }                                                                                                        \
    };
TAMIS_PRODUCT(64, 32, 32, 33, 34, 35, 36, 37, 38, 39)
TAMIS_PRODUCT(72, 36, 36, 37, 38, 39, 40, 41, 42, 43)
TAMIS_PRODUCT(96, 48, 48, 49, 50, 51, 52, 53, 54, 55)
TAMIS_PRODUCT(112, 56, 56, 57, 58, 59, 60, 61, 62, 63)
TAMIS_PRODUCT(120, 60, 60, 61, 62, 63, 64, 65, 66, 67)
TAMIS_PRODUCT(128, 64, 64, 65, 66, 67, 68, 69, 70, 71)
TAMIS_PRODUCT(144, 72, 72, 73, 74, 75, 76, 77, 78, 79)
TAMIS_PRODUCT(160, 80, 80, 81, 82, 83, 84, 85, 86, 87)
TAMIS_PRODUCT(176, 88, 88, 89, 90, 91, 92, 93, 94, 95)
TAMIS_PRODUCT(184, 92, 92, 93, 94, 95, 96, 97, 98, 99)
TAMIS_PRODUCT(192, 96, 96, 97, 98, 99, 100, 101, 102, 103)
TAMIS_PRODUCT(200, 100, 100, 101, 102, 103, 104, 105, 106, 107)
TAMIS_PRODUCT(208, 104, 104, 105, 106, 107, 108, 109, 110, 111)
TAMIS_PRODUCT(224, 112, 112, 113, 114, 115, 116, 117, 118, 119)
TAMIS_PRODUCT(232, 116, 116, 117, 118, 119, 120, 121, 122, 123)
TAMIS_PRODUCT(256, 128, 128, 129, 130, 131, 132, 133, 134, 135)

#else
#include "hopper_emulated.h"
#endif

// Where an operand of a product lies: core matrices of 8 rows x 16 bytes. `stride` is that between groups of 8 rows,
// `leading` that between the two core matrices of a row group (without swizzle only), in bytes.
enum Swizzle { PLAIN = 0, SWIZZLE_128 = 1 };
TAMIS_DEVICE unsigned long long operand(unsigned address, unsigned leading, unsigned stride, Swizzle swizzle) {
    return (unsigned long long)(address >> 4 & 0x3fff) | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(stride >> 4) << 32 | (unsigned long long)swizzle << 62;
}
// The same operand so many bytes further, within shared memory.
TAMIS_DEVICE unsigned long long further(unsigned long long operand, unsigned bytes) {
    return (operand & 0xffffffff00000000ull) | ((unsigned)operand + (bytes >> 4));
}
