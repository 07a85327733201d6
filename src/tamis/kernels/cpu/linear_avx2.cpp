/* Linear layers with AVX2 and FMA: sixteen lanes are two 256-bit registers. See vector_kernels.h.
 *
 * Four rows at a time take 8 of the 16 registers. vpermilps selects inside 128 bits, where a broadcast quad of
 * inputs lies anyway. Few rows are bound by memory, more by FMA (two 256-bit ones a cycle).
 */
#include <immintrin.h>

#include "vector_kernels.h"

namespace {

struct Lanes {
    enum { MAX_ROWS = 4, MAX_ACCUMULATORS = 4, FOUR_ROWS = 0 };
    struct Places {
        __m256i low, high;
    };
    using Quad = __m256;
    __m256 low, high;

    static inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static inline Lanes load(const uint8_t *from) {
        return {_mm256_loadu_ps((const float *)from), _mm256_loadu_ps((const float *)(from + 32))};
    }
    static inline void load_bf16(const uint8_t *from, Lanes &first, Lanes &second) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)from);
        const __m256i b = _mm256_loadu_si256((const __m256i *)(from + 32));
        const __m256i upper_half = _mm256_set1_epi32((int)0xffff0000u);
        first = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
        second = {_mm256_castsi256_ps(_mm256_and_si256(a, upper_half)),
                  _mm256_castsi256_ps(_mm256_and_si256(b, upper_half))};
    }
    static inline Places load_places(const uint8_t *from) {
        return {_mm256_loadu_si256((const __m256i *)from), _mm256_loadu_si256((const __m256i *)(from + 32))};
    }
    static inline Places upper(Places p) { return {_mm256_srli_epi32(p.low, 16), _mm256_srli_epi32(p.high, 16)}; }
    static inline Places next(Places p) { return {_mm256_srli_epi32(p.low, 2), _mm256_srli_epi32(p.high, 2)}; }
    static inline Quad load_quad(const float *x) { return _mm256_broadcast_ps((const __m128 *)x); }
    static inline Lanes select(Quad quad, Places p) {
        return {_mm256_permutevar_ps(quad, p.low), _mm256_permutevar_ps(quad, p.high)};
    }
    static inline Lanes broadcast(const float *x) {
        const __m256 v = _mm256_broadcast_ss(x);
        return {v, v};
    }
    static inline Lanes multiply_add(Lanes a, Lanes b, Lanes sum) {
        return {_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
    }
    static inline Lanes add(Lanes a, Lanes b) {
        return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
    }
    static inline void store(float *to, Lanes a) {
        _mm256_storeu_ps(to, a.low);
        _mm256_storeu_ps(to + 8, a.high);
    }
};

}  // namespace

const Kernels *avx2_kernels(int32_t weight_dtype) { return vector_kernels<Lanes>(weight_dtype); }
