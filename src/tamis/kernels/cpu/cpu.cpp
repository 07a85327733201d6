/* Which instruction sets this processor and this operating system offer. */
#include "internal.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

uint64_t enabled_state() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

bool has(uint32_t word, int bit) { return word >> bit & 1; }

/* Linux keeps the 8 KB of tile registers off until a process asks for them. */
bool request_tiles() {
#if defined(TAMIS_EMULATE_AMX)
    return true;
#else
    const long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#endif
}

int32_t detect() {
    int32_t mask = 1 << TAMIS_PORTABLE;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return mask;
    const bool fma = has(c, 12), saved_by_system = has(c, 27);
    if (!saved_by_system || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return mask;
    const uint64_t state = enabled_state();
    const uint32_t ebx = b, edx = d;
    const uint32_t subleaves = a;
    const uint32_t more = subleaves && __get_cpuid_count(7, 1, &a, &b, &c, &d) ? a : 0;
    if (!fma || !has(ebx, 5) || (state & 0x6) != 0x6) return mask;
    mask |= 1 << TAMIS_AVX2;
    const bool avx512 = has(ebx, 16) && has(ebx, 17) && has(ebx, 30) && has(ebx, 31);
    if (!avx512 || (state & 0xe6) != 0xe6) return mask;
    mask |= 1 << TAMIS_AVX512;
    if (has(more, 5)) mask |= 1 << TAMIS_AVX512_BF16;
#if defined(TAMIS_EMULATE_AMX)
    const bool tiles = true;
    (void)edx;
#else
    const bool tiles = has(edx, 22) && has(edx, 24) && (state & 0x60000) == 0x60000;
#endif
    if (tiles && request_tiles()) mask |= 1 << TAMIS_AMX;
    return mask;
}

}  // namespace

int32_t processor_isa_mask() {
    static int32_t known = 0; /* threads may detect twice, with one result */
    int32_t mask = __atomic_load_n(&known, __ATOMIC_ACQUIRE);
    if (!mask) {
        mask = detect();
        __atomic_store_n(&known, mask, __ATOMIC_RELEASE);
    }
    return mask;
}

#else

int32_t processor_isa_mask() { return 1 << TAMIS_PORTABLE; }

#endif
