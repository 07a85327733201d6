// What tensor cores have offered since Ampere (sm_80), as functions: copies past the registers, ldmatrix, mma, mma.sp.
//
// PTX ISA 9.0, sections on cp.async, ldmatrix, mma and mma.sp. Under the tests' emulation the same functions come from
// ampere_emulated.h. `address` is always one in shared memory, of 32 bits.
#pragma once

#include "shared_memory.h"

#ifndef TAMIS_EMULATED

// --- copies into shared memory, 16 bytes each, that are waited for in groups ---

// The source is not read, and 16 zeros are written, where `exists` is false.
TAMIS_DEVICE void copy_or_zero(unsigned address, const void *from, bool exists) {
    const int bytes = exists ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
                 : "memory");
}
TAMIS_DEVICE void copy(unsigned address, const void *from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
// The copies of this thread since the last call are a group, also when there are none.
TAMIS_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until no more than `pending` groups of this thread are under way, the newest ones.
template <int pending> TAMIS_DEVICE void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// What the warp's threads wrote before is seen by all of them behind it.
TAMIS_DEVICE void warp_meets() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

// --- operands and products of a warp; lane 4 q + h ---

// Four matrices of 8 rows x 16 bytes: lane 8 m + r gives the address of row r of matrix m, and word m that a lane gets
// is word h of row q of matrix m.
TAMIS_DEVICE void load_matrices(unsigned address, unsigned *words) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

// sums += A (16 x 16) times B (16 x 8). A lane has of A rows q and q + 8 of columns 2 h, 2 h + 1, then both of columns
// 8 further; of B rows 2 h, 2 h + 1 of column q, then 8 further; of the sums columns 2 h, 2 h + 1 of rows q and q + 8.
TAMIS_DEVICE void multiply_dense(float (&d)[4], const unsigned *a, const unsigned *b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." PRODUCT_TYPE "." PRODUCT_TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Metadata whose places ascend: older compilers (before CUDA 12.5) have one instruction for all orders, which newer
// GPUs emulate.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1205
#define TAMIS_SPARSE_PRODUCT "mma.sp::ordered_metadata"
#else
#define TAMIS_SPARSE_PRODUCT "mma.sp"
#endif

// sums += A (16 x 32 in 2:4, of which the kept halves are given as above) times B (32 x 8, two words more). `places` of
// lanes 4 q + 2 selector + k: rows q (low half) and q + 8 (high half), groups 4 k to 4 k + 3, a nibble each.
template <int selector>
TAMIS_DEVICE void multiply_sparse(float (&d)[4], const unsigned *a, const unsigned *b, unsigned places) {
    asm(TAMIS_SPARSE_PRODUCT ".sync.aligned.m16n8k32.row.col.f32." PRODUCT_TYPE "." PRODUCT_TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(places),
          "n"(selector));
}

#else
#include "ampere_emulated.h"
#endif
