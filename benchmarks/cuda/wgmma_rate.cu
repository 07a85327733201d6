// How fast Hopper's tensor cores multiply, alone and while the copy engine fills shared memory beside them.
//
// Two warpgroups repeat one product of 64 x N; a third copies what a real kernel would need for it, from the L2 cache into
// the stages of a ring, if FILL. With REGISTERS_A operand A stays in registers, and only B's bytes are copied.
//
// Constants: WIDE (N), SPARSE, REGISTERS_A, FILL, INTEGERS (s8 with s32 sums; else f16 with f32 sums), STEPS.
#define PRODUCT_TYPE "f16"  // of the functions of hopper.h, which are not used here
#include "hopper.h"

#if INTEGERS
#define SUM unsigned
#define HOW "+r"
#define TYPES "s32.s8.s8"
#define SCALES_SHARED ""
#define SCALES_REGISTERS ""
#if SPARSE
#define DEPTH "k64"
#else
#define DEPTH "k32"
#endif
#else
#define SUM float
#define HOW "+f"
#define TYPES "f32.f16.f16"
#define SCALES_SHARED ", 1, 1, 0, 0"
#define SCALES_REGISTERS ", 1, 1, 0"
#if SPARSE
#define DEPTH "k32"
#else
#define DEPTH "k16"
#endif
#endif
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#if WIDE == 64
#define SUMS 32
#define NUMBERS(a) a(32, 33, 34, 35, 36, 37, 38)
#elif WIDE == 128
#define SUMS 64
#define NUMBERS(a) a(64, 65, 66, 67, 68, 69, 70)
#else
#define SUMS 128
#define NUMBERS(a) a(128, 129, 130, 131, 132, 133, 134)
#endif
#define LIST JOIN(TAMIS_, SUMS)
#define NAMES JOIN(TAMIS_NAMES_, SUMS)

#if SPARSE
#define NAME "wgmma.mma_async.sp.sync.aligned.m64n" TEXT(WIDE) DEPTH "." TYPES " {" NAMES "}, "
#else
#define NAME "wgmma.mma_async.sync.aligned.m64n" TEXT(WIDE) DEPTH "." TYPES " {" NAMES "}, "
#endif
#define FROM_SHARED_DENSE(a, b, c, d, e, f, g) "%" #a ", %" #b ", 1" SCALES_SHARED ";"
#define FROM_SHARED_SPARSE(a, b, c, d, e, f, g) "%" #a ", %" #b ", %" #c ", 0, 1" SCALES_SHARED ";"
#define FROM_REGISTERS_DENSE(a, b, c, d, e, f, g) "{%" #a ", %" #b ", %" #c ", %" #d "}, %" #e ", 1" SCALES_REGISTERS ";"
#define FROM_REGISTERS_SPARSE(a, b, c, d, e, f, g) \
    "{%" #a ", %" #b ", %" #c ", %" #d "}, %" #e ", %" #f ", 0, 1" SCALES_REGISTERS ";"

TAMIS_DEVICE void product(SUM (&sums)[SUMS], unsigned long long a, const unsigned (&own)[4], unsigned long long b,
                          unsigned places) {
#if REGISTERS_A && SPARSE
    asm volatile(NAME NUMBERS(FROM_REGISTERS_SPARSE)
                 : LIST(HOW, sums, 0)
                 : "r"(own[0]), "r"(own[1]), "r"(own[2]), "r"(own[3]), "l"(b), "r"(places));
#elif REGISTERS_A
    asm volatile(NAME NUMBERS(FROM_REGISTERS_DENSE)
                 : LIST(HOW, sums, 0)
                 : "r"(own[0]), "r"(own[1]), "r"(own[2]), "r"(own[3]), "l"(b));
#elif SPARSE
    asm volatile(NAME NUMBERS(FROM_SHARED_SPARSE) : LIST(HOW, sums, 0) : "l"(a), "l"(b), "r"(places));
#else
    asm volatile(NAME NUMBERS(FROM_SHARED_DENSE) : LIST(HOW, sums, 0) : "l"(a), "l"(b));
#endif
}

constexpr int STAGES = 4, PRODUCTS = SPARSE ? 2 : 4;  // of a step: 128 bytes of every row of B
constexpr int B_BYTES = WIDE * 128, A_BYTES = REGISTERS_A ? 0 : 2 * PRODUCTS * 64 * 32;
constexpr int STAGE = B_BYTES + (REGISTERS_A ? 1024 : A_BYTES);
constexpr int BARRIERS = STAGES * STAGE;

extern "C" __global__ void __launch_bounds__(384, 1) wgmma_rate(const unsigned char *data, unsigned *out, int size) {
    SHARED_MEMORY(memory);
    const unsigned base = shared_address(memory);
    const int group = threadIdx.x / 128;
    for (int i = threadIdx.x * 16; i < STAGES * STAGE; i += 384 * 16)
        *reinterpret_cast<FourWords *>(memory + i) = *reinterpret_cast<const FourWords *>(data + i % size);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_make(base + BARRIERS + 16 * stage, 1);
            barrier_make(base + BARRIERS + 16 * stage + 8, 8);
        }
        barriers_made();
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (group == 2) {
        give_registers<40>();
        if (FILL && threadIdx.x == 256) {
            for (int step = 0; step < STEPS; step++) {
                const unsigned stage = step % STAGES, full = base + BARRIERS + 16 * stage;
                barrier_wait(full + 8, (step / STAGES & 1) ^ 1);
                barrier_expect(full, B_BYTES + A_BYTES);
                const long long from = (long long)((step + blockIdx.x) % 8) * (B_BYTES + A_BYTES);
                copy_bytes(base + stage * STAGE, data + from, B_BYTES + A_BYTES, full);
            }
        }
        return;
    }
    take_registers<232>();
    SUM sums[SUMS];
#pragma unroll
    for (int i = 0; i < SUMS; i++) sums[i] = 0;
    const unsigned *words = reinterpret_cast<const unsigned *>(data) + threadIdx.x * 4;
    const unsigned own[4] = {words[0], words[1], words[2], words[3]}, places = 0x44e4d4c9u;
    for (int step = 0; step < STEPS; step++) {
        const unsigned stage = step % STAGES, full = base + BARRIERS + 16 * stage;
        if (FILL) barrier_wait(full, step / STAGES & 1);
        products_begin();
#pragma unroll
        for (int part = 0; part < PRODUCTS; part++)
            product(sums,
                    operand(base + stage * STAGE + B_BYTES + (group * PRODUCTS + part) * 2048, 128, 256, PLAIN), own,
                    operand(base + stage * STAGE + part * (128 / PRODUCTS), 16, 1024, SWIZZLE_128), places);
        products_commit();
        products_wait<1>();
        // The step before this one has been read: its stage may be filled again.
        if (FILL && step > 0 && threadIdx.x % 32 == 0) barrier_arrive(base + BARRIERS + 16 * ((step - 1) % STAGES) + 8);
    }
    products_wait<0>();
    unsigned seen = 0;
#pragma unroll
    for (int i = 0; i < SUMS; i++) seen ^= INTEGERS ? (unsigned)sums[i] : __float_as_uint((float)sums[i]);
    out[blockIdx.x * 256 + threadIdx.x] = seen;
}
