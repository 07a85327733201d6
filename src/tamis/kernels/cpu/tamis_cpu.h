/* C interface of Tamis's CPU kernels.
 *
 * A chain is one or more linear layers that run one after the other in a single parallel region:
 *
 *     h0 = X                                            [rows, k0]
 *     h(i+1) = epilogue_i(h(i) W_i^T + bias_i)          [rows, n_i],  k(i+1) = n_i
 *     Y = h(count)
 *
 * Pieces stand beside a layer's own input (X, or the outputs before it): its input is then
 *
 *     [own input | zeros | piece | zeros | piece ...]
 *
 * where each piece starts at a multiple of 16 columns, the zeros fill up to it, and the last one ends at k.
 *
 * Products are summed in float32. Weights are packed tiles (formats/tiles.py), X, Y and residuals are row-major
 * with any row stride, float32 or bfloat16. Nothing here allocates, keeps state between calls, or touches
 * the floating-point environment. One tamis_chain serves one call at a time (it owns a workspace).
 */
#ifndef TAMIS_CPU_H
#define TAMIS_CPU_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TAMIS_CPU_ABI 2
#define TAMIS_MAX_LAYERS 64
#define TAMIS_MAX_THREADS 256

enum tamis_dtype { TAMIS_F32 = 0, TAMIS_BF16 = 1 };
enum tamis_pattern { TAMIS_DENSE = 0, TAMIS_TWO_FOUR = 1 };

/* Instruction set levels; each includes those below it. */
enum tamis_isa {
    TAMIS_PORTABLE = 0,
    TAMIS_AVX2 = 1,        /* AVX2, FMA */
    TAMIS_AVX512 = 2,      /* AVX-512 F, BW, DQ, VL */
    TAMIS_AVX512_BF16 = 3, /* vdpbf16ps */
    TAMIS_AMX = 4          /* AMX tiles with bf16 */
};

/* Steps of an epilogue, applied in order to y = x W^T + bias. */
enum tamis_step {
    TAMIS_RELU = 0,        /* max(y, 0); NaN stays NaN */
    TAMIS_CLIP = 1,        /* min(max(y, p0), p1) */
    TAMIS_SILU = 2,        /* y / (1 + exp(-y)) */
    TAMIS_HARDSWISH = 3,   /* y min(max(y / 6 + 1/2, 0), 1) */
    TAMIS_GELU = 4,        /* y Phi(y), the erf form */
    TAMIS_GELU_TANH = 5,   /* its tanh approximation */
    TAMIS_SIGMOID = 6,     /* 1 / (1 + exp(-y)) */
    TAMIS_LEAKY_RELU = 7,  /* y < 0 ? p0 y : y */
    TAMIS_TANH = 8,        /* tanh(y) */
    TAMIS_ADD_RESIDUAL = 9 /* y + residual */
};

typedef struct {
    int32_t kind;
    float p0, p1;
} tamis_epilogue;

typedef struct {
    void *data;
    int64_t stride; /* elements from one row to the next */
    int32_t dtype;
    int32_t reserved;
} tamis_matrix;

typedef struct {
    const void *weight; /* packed tiles; any alignment, 64 bytes is fastest */
    const float *bias;  /* n values, or NULL */
    const tamis_epilogue *epilogue;
    int64_t n, k;
    int32_t weight_dtype, pattern, epilogue_count, reserved;
} tamis_linear;

/* Columns of a matrix that stand at column..column+columns of a layer's input. */
typedef struct {
    tamis_matrix matrix;
    int64_t column, columns;
    int32_t layer, reserved;
} tamis_piece;

typedef struct {
    const tamis_linear *layers;
    const tamis_matrix *residuals; /* one for each layer; only read where an epilogue adds it; may be NULL */
    const tamis_piece *pieces;     /* by layer, then by column; may be NULL when there are none */
    void *workspace;               /* at least tamis_chain_workspace bytes; contents are scratch */
    int64_t workspace_bytes;
    tamis_matrix x, y; /* stride and dtype; data is given to each call */
    int64_t x_columns; /* k of the first layer, unless it has pieces */
    int32_t layer_count, piece_count, isa, threads;
} tamis_chain;

/* Result codes. */
enum tamis_status {
    TAMIS_OK = 0,
    TAMIS_BAD_ARGUMENT = 1,        /* a null pointer, a size below one, an unknown code, layers or pieces that do not join */
    TAMIS_SMALL_WORKSPACE = 2,
    TAMIS_UNAVAILABLE_ISA = 3,
    TAMIS_SMALL_STRIDE = 4
};

#define TAMIS_API __attribute__((visibility("default")))

TAMIS_API int32_t tamis_cpu_abi(void);
/* The best level that this build and this processor have (asks the kernel for AMX once). */
TAMIS_API int32_t tamis_cpu_best_isa(void);
/* Bit i is set when level i can run. */
TAMIS_API int32_t tamis_cpu_isa_mask(void);
/* Use an OpenMP runtime's threads: GOMP_parallel, omp_get_thread_num, omp_get_num_threads of one library.
 * Without it, or with nulls, parallel calls start threads of their own, which is slow. */
TAMIS_API void tamis_cpu_set_openmp(void *parallel, void *thread_num, void *num_threads);
/* Bytes of workspace for so many rows; negative: minus a result code. */
TAMIS_API int64_t tamis_chain_workspace(const tamis_chain *chain, int64_t rows);
/* Run; x and y replace chain->x.data and chain->y.data. rows = 0 does nothing. */
TAMIS_API int32_t tamis_chain_run(const tamis_chain *chain, const void *x, void *y, int64_t rows);

#ifdef __cplusplus
}
#endif
#endif
