/* Linear layers with AVX-512 (F, BW, DQ, VL): sixteen lanes are one register. See vector_kernels.h.
 *
 * Sixteen rows take 16 of the 32 registers, and each weight vector that is loaded (and widened, for bfloat16)
 * serves all of them. float32 weights run here on every AVX-512 machine, bfloat16 ones where there is no
 * vdpbf16ps. Few rows are bound by memory; sixteen by FMA and permutations.
 */
#include <immintrin.h>

#include "vector_kernels.h"

namespace {

struct Lanes {
    enum { MAX_ROWS = 16, MAX_ACCUMULATORS = 16, FOUR_ROWS = 1 };
    using Places = __m512i;
    using Quad = __m512;
    __m512 v;

    static inline Lanes zero() { return {_mm512_setzero_ps()}; }
    static inline Lanes load(const uint8_t *from) { return {_mm512_loadu_ps(from)}; }
    static inline void load_bf16(const uint8_t *from, Lanes &first, Lanes &second) {
        const __m512i words = _mm512_loadu_si512(from);
        first = {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
        second = {_mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32((int)0xffff0000u)))};
    }
    static inline Places load_places(const uint8_t *from) { return _mm512_loadu_si512(from); }
    static inline Places upper(Places p) { return _mm512_srli_epi32(p, 16); }
    static inline Places next(Places p) { return _mm512_srli_epi32(p, 2); }
    static inline Quad load_quad(const float *x) { return _mm512_broadcast_f32x4(_mm_loadu_ps(x)); }
    static inline Quad load_four_quads(const float *x) { return _mm512_loadu_ps(x); }
    /* The index of a place in the quad of row i of four: (p & 3) | 4 i. */
    static inline Places in_row(Places p, int i) {
        return _mm512_ternarylogic_epi32(p, _mm512_set1_epi32(3), _mm512_set1_epi32(4 * i), 0xea);
    }
    /* vpermps reads 4 bits; with one quad broadcast, the upper 2 choose between copies of the same. */
    static inline Lanes select(Quad quads, Places p) { return {_mm512_permutexvar_ps(p, quads)}; }
    static inline Lanes broadcast(const float *x) { return {_mm512_set1_ps(*x)}; }
    static inline Lanes multiply_add(Lanes a, Lanes b, Lanes sum) { return {_mm512_fmadd_ps(a.v, b.v, sum.v)}; }
    static inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
    static inline void store(float *to, Lanes a) { _mm512_storeu_ps(to, a.v); }
};

}  // namespace

const Kernels *avx512_kernels(int32_t weight_dtype) { return vector_kernels<Lanes>(weight_dtype); }
