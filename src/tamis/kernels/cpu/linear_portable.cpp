/* Linear layers in plain C++: the level that every processor has. See vector_kernels.h for the mathematics.
 *
 * Sixteen lanes are an array of sixteen floats; compilers turn the loops into whatever vectors they are
 * allowed to use. Bound by instructions, not by memory: meant for correctness everywhere, not for speed.
 */
#include "vector_kernels.h"

namespace {

struct Lanes {
    enum { MAX_ROWS = 2, MAX_ACCUMULATORS = 2, FOUR_ROWS = 0 };
    struct Places {
        uint32_t word[16];
    };
    using Quad = const float *;
    float lane[16];

    static inline Lanes zero() { return Lanes{}; }
    static inline Lanes load(const uint8_t *from) {
        Lanes a;
        __builtin_memcpy(a.lane, from, 64);
        return a;
    }
    static inline void load_bf16(const uint8_t *from, Lanes &first, Lanes &second) {
        uint32_t word[16];
        __builtin_memcpy(word, from, 64);
        for (int i = 0; i < 16; i++) {
            first.lane[i] = float_of(word[i] << 16);
            second.lane[i] = float_of(word[i] & 0xffff0000u);
        }
    }
    static inline Places load_places(const uint8_t *from) {
        Places p;
        __builtin_memcpy(p.word, from, 64);
        return p;
    }
    static inline Places upper(Places p) {
        for (int i = 0; i < 16; i++) p.word[i] >>= 16;
        return p;
    }
    static inline Places next(Places p) {
        for (int i = 0; i < 16; i++) p.word[i] >>= 2;
        return p;
    }
    static inline Quad load_quad(const float *x) { return x; }
    static inline Lanes select(Quad quad, const Places &p) {
        Lanes a;
        for (int i = 0; i < 16; i++) a.lane[i] = quad[p.word[i] & 3];
        return a;
    }
    static inline Lanes broadcast(const float *x) {
        Lanes a;
        for (int i = 0; i < 16; i++) a.lane[i] = *x;
        return a;
    }
    static inline Lanes multiply_add(const Lanes &a, const Lanes &b, Lanes sum) {
        for (int i = 0; i < 16; i++) sum.lane[i] += a.lane[i] * b.lane[i];
        return sum;
    }
    static inline Lanes add(Lanes a, const Lanes &b) {
        for (int i = 0; i < 16; i++) a.lane[i] += b.lane[i];
        return a;
    }
    static inline void store(float *to, const Lanes &a) { __builtin_memcpy(to, a.lane, 64); }
};

}  // namespace

const Kernels *portable_kernels(int32_t weight_dtype) { return vector_kernels<Lanes>(weight_dtype); }
