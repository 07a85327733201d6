// What tensor cores have offered since Ampere on the CPU, as ampere.h declares it; included behind cuda_emulated.h.
#pragma once

void warp_meets();

void load_matrices(unsigned address, unsigned *words);
void emulated_multiply_dense(float (&d)[4], const unsigned *a, const unsigned *b, char type);
void emulated_multiply_sparse(float (&d)[4], const unsigned *a, const unsigned *b, unsigned places, int selector,
                              char type);

#ifdef PRODUCT_TYPE  // what depends on a kernel's constants
inline void multiply_dense(float (&d)[4], const unsigned *a, const unsigned *b) {
    emulated_multiply_dense(d, a, b, *PRODUCT_TYPE);
}
template <int selector>
inline void multiply_sparse(float (&d)[4], const unsigned *a, const unsigned *b, unsigned places) {
    emulated_multiply_sparse(d, a, b, places, selector, *PRODUCT_TYPE);
}
#endif
