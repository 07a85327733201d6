// Pointwise programs: out[i] = program(in0[i], in1[i], ...), with NumPy's broadcasting; also plain conversions.
//
// Mathematics: one thread computes WIDTH elements that follow each other in the output's memory, in float32 registers,
//   and rounds once at the end. The program is PROGRAM, a list of STEP(kind, arguments...) on `value`; ARGUMENT(k) is
//   element j of operand k, other arguments are numbers.
// Layouts: the output is dense in any order of axes. Operand k has type TYPE_k and MODE_k:
//   FLAT     lies like the output, of the same shape: read as vectors;
//   SPLAT    does not vary along the innermost axis, of which WIDTH divides the extent: one read for WIDTH elements;
//   VECTOR   is contiguous along it, and every other stride is a multiple of WIDTH: read as vectors;
//   ELEMENT  anything else: element by element.
//   The last three have STRIDES_k over the RANK collapsed axes EXTENTS of the output (outermost first, 0 = broadcast;
//   the outermost extent is not used).
// Limits: up to 8 operands, fewer than 2^31 elements, addresses aligned to 16 bytes, RANK >= 1.
// Roof: memory. bytes over the bandwidth (reads of every operand once, one write). Measured on an H100 (3.35 TB/s
//   nominal): 0.80 to 0.90 of it for GELU, SiLU and residual + ReLU on large tensors in float16.
//
// Constants: WIDTH, RANK, EXTENTS, OPERANDS, TYPE_k, MODE_k, STRIDES_k, OUT_TYPE, PROGRAM.
#include "overlap.h"
#include "pointwise_steps.h"

enum Mode { FLAT, SPLAT, VECTOR, ELEMENT };

// Where element i of the output lies in an operand; all divisors are constants.
template <class Strides> TAMIS_DEVICE unsigned offset_of(unsigned i) {
    constexpr unsigned extents[] = {EXTENTS};
    unsigned offset = 0;
#pragma unroll
    for (int axis = RANK - 1; axis >= 0; axis--) {
        offset += (axis ? i % extents[axis] : i) * Strides::of(axis);
        i /= extents[axis];
    }
    return offset;
}

// Elements i to i + count of the output see these values of an operand.
template <int mode, class Strides, class T>
TAMIS_DEVICE void read_operand(const T *from, unsigned i, unsigned count, float (&values)[WIDTH]) {
    if constexpr (mode == SPLAT) {
        const float value = to_float(from[offset_of<Strides>(i)]);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) values[j] = value;
    } else if constexpr (mode == VECTOR) {
        load<WIDTH>(from + offset_of<Strides>(i), values);
    } else if (mode == FLAT && count == WIDTH) {
        load<WIDTH>(from + i, values);
    } else {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            const unsigned place = i + ((unsigned)j < count ? j : 0);  // past the end: an element that exists
            values[j] = to_float(from[mode == FLAT ? place : offset_of<Strides>(place)]);
        }
    }
}

#define STRIDES(k)                                                      \
    struct Strides##k {                                                 \
        static __device__ __forceinline__ unsigned of(int axis) {       \
            constexpr unsigned strides[] = {STRIDES_##k};               \
            return strides[axis];                                       \
        }                                                               \
    };
STRIDES(0)
#if OPERANDS > 1
STRIDES(1)
#endif
#if OPERANDS > 2
STRIDES(2)
#endif
#if OPERANDS > 3
STRIDES(3)
#endif
#if OPERANDS > 4
STRIDES(4)
#endif
#if OPERANDS > 5
STRIDES(5)
#endif
#if OPERANDS > 6
STRIDES(6)
#endif
#if OPERANDS > 7
STRIDES(7)
#endif

#define READ(k) read_operand<MODE_##k, Strides##k>((const TYPE_##k *)in##k, i, count, operands[k]);
#define STEP(kind, ...) value = apply_##kind(__VA_ARGS__);
#define ARGUMENT(k) operands[k][j]

extern "C" __global__ void __launch_bounds__(256)
    pointwise(void *out, unsigned elements, const void *in0, const void *in1, const void *in2, const void *in3,
              const void *in4, const void *in5, const void *in6, const void *in7) {
    next_may_start();
    const unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    previous_finished();
    if (i >= elements) return;
    const unsigned count = elements - i < WIDTH ? elements - i : WIDTH;
    float operands[OPERANDS][WIDTH];
    READ(0)
#if OPERANDS > 1
    READ(1)
#endif
#if OPERANDS > 2
    READ(2)
#endif
#if OPERANDS > 3
    READ(3)
#endif
#if OPERANDS > 4
    READ(4)
#endif
#if OPERANDS > 5
    READ(5)
#endif
#if OPERANDS > 6
    READ(6)
#endif
#if OPERANDS > 7
    READ(7)
#endif
    float result[WIDTH];
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        float value = operands[0][j];
        PROGRAM
        result[j] = value;
    }
    OUT_TYPE *to = (OUT_TYPE *)out + i;
    if (count == WIDTH) {
        store<WIDTH>(to, result);
        return;
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++)
        if ((unsigned)j < count) to[j] = Convert<OUT_TYPE>::narrow(result[j]);
}
