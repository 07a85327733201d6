"""The pointwise kernel in emulation against the NumPy meaning of the programs, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import assert_close, from_memory, in_memory, memory_shape, run

from tamis.compiler.ir.evaluate_pointwise import apply_program
from tamis.compiler.ir.ops import BINARY_KINDS, BOOLEAN_KINDS, UNARY_KINDS, Pointwise
from tamis.formats.dtype import DType
from tamis.kernels.cuda.pointwise import Operand, PointwiseStep, pointwise
from tamis.kernels.cuda.specification import Argument

F32, F16, BF16 = DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16
SPECIAL = np.array(
    [0.0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 20, -20, 88, -88, 1e-6, -1e-3]
)
PARAMETERS = {
    "celu": (0.7,), "clip": (-0.5, 2.0), "elu": (1.3,), "hardsigmoid": (0.3, 0.4), "leaky_relu": (0.2,),
    "selu": (1.5, 1.1), "thresholded_relu": (0.4,),
}  # fmt: skip
UNARY = tuple(kind for kind in UNARY_KINDS if kind not in BOOLEAN_KINDS)
BINARY = tuple(kind for kind in BINARY_KINDS if kind not in BOOLEAN_KINDS)


def check(program, shapes, dtypes, layouts, out_shape, out_dtype, out_last, values=None, scale=16.0):
    """Run a program on operands of these shapes, types and layouts (True: channels last) and compare."""
    generator = np.random.default_rng(5)
    values = values or [generator.standard_normal(shape) for shape in shapes]
    arrays = [in_memory(v, d.numpy, last) for v, d, last in zip(values, dtypes, layouts, strict=True)]
    operands = [
        Operand(shape, dtype, last, Argument("in", index))
        for index, (shape, dtype, last) in enumerate(zip(shapes, dtypes, layouts, strict=True))
    ]
    steps = [PointwiseStep(s.kind, s.params, s.operand, s.swap) for s in program]
    kernel = pointwise(steps, operands, out_shape, out_dtype, out_last)
    (result,) = run(kernel, arrays, [], [(memory_shape(out_shape, out_last), out_dtype.numpy)])
    exact = [from_memory(array, last) for array, last in zip(arrays, layouts, strict=True)]
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(apply_program(program, exact[0], exact), out_shape)
    assert_close(from_memory(result, out_last), expected, out_dtype, scale)
    return kernel


@pytest.mark.parametrize(("kind", "parameters"), [*((kind, ()) for kind in UNARY), *PARAMETERS.items()], ids=str)
def test_unary_kinds(kind, parameters):
    values = np.concatenate([SPECIAL, np.random.default_rng(1).standard_normal(83) * 3])
    program = (Pointwise(kind, parameters),)
    # float32 rounding of an argument up to 88 moves exp and its kin by that much.
    scale = 256.0 if kind in ("cosh", "exp", "sinh", "tan") else 16.0
    check(program, [values.shape], [F32], [False], values.shape, F32, False, [values], scale)


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("swap", [False, True], ids=["straight", "swapped"])
def test_binary_kinds(kind, swap):
    if kind == "pow":
        a, b = np.meshgrid(np.abs(SPECIAL), [0.0, 1, 2, -1, 0.5, 3])
        a, b = (b, a) if swap else (a, b)
    else:
        a, b = np.meshgrid(SPECIAL, SPECIAL)
    program = (Pointwise(kind, operand=1, swap=swap),)
    a, b = a.astype(np.float32), b.astype(np.float32)
    if kind in ("mod", "fmod"):  # NumPy has other opinions on the sign of a zero remainder and on infinite divisors
        keep = np.isfinite(a) & np.isfinite(b)
        a, b = a[keep], b[keep]
    check(program, [a.shape, b.shape], [F32] * 2, [False] * 2, a.shape, F32, False, [a, b], 64.0)


def test_numbers_are_literals():
    program = (
        Pointwise("clip", (-np.inf, 3.25)),
        Pointwise("clip", (-1e-30, np.inf)),
        Pointwise("leaky_relu", (-0.1,)),
    )
    check(program, [(37,)], [F32], [False], (37,), F32, False)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("elements", [1, 3, 8, 2047, 2048, 2049])
def test_sizes_that_do_not_fill_a_block(dtype, elements):
    program = (Pointwise("mul", operand=1), Pointwise("add", operand=2), Pointwise("relu"))
    check(program, [(elements,)] * 3, [dtype] * 3, [False] * 3, (elements,), dtype, False)


# Output shape and layout, then shape, type and layout of each operand, and the modes that are to be chosen.
BROADCASTS = [
    (
        "bias, channels last",
        (2, 24, 5, 3),
        True,
        [((2, 24, 5, 3), BF16, True), ((24, 1, 1), F32, False)],
        "FLAT VECTOR",
    ),
    ("bias, row major", (2, 24, 5, 3), False, [((2, 24, 5, 3), F16, False), ((24, 1, 1), F32, False)], "FLAT ELEMENT"),
    ("bias, even plane", (2, 3, 4, 4), False, [((2, 3, 4, 4), F16, False), ((3, 1, 1), F32, False)], "FLAT SPLAT"),
    ("odd channels", (2, 5, 3, 3), True, [((2, 5, 3, 3), F16, True), ((5, 1, 1), F16, False)], "FLAT ELEMENT"),
    ("gate", (2, 16, 3, 5), True, [((2, 16, 3, 5), F16, True), ((2, 16, 1, 1), F16, True)], "FLAT VECTOR"),
    ("other layout", (2, 16, 3, 5), True, [((2, 16, 3, 5), F16, True), ((2, 16, 3, 5), F16, False)], "FLAT ELEMENT"),
    ("scalar at run time", (7, 9), False, [((7, 9), F32, False), ((1,), F32, False)], "FLAT SPLAT"),
    ("rank 0", (7, 9), False, [((7, 9), F32, False), ((), F32, False)], "FLAT SPLAT"),
    ("value is repeated", (6, 8), False, [((8,), F32, False), ((6, 1), F32, False)], "VECTOR SPLAT"),
    ("outer product", (3, 5), False, [((3, 1), F16, False), ((1, 5), F16, False)], "ELEMENT ELEMENT"),
    ("middle axis", (2, 3, 8, 4), False, [((2, 3, 8, 4), F32, False), ((2, 1, 8, 1), F32, False)], "FLAT SPLAT"),
    ("unaligned rows", (2, 3, 2, 8), False, [((2, 3, 2, 8), F16, False), ((3, 1, 8), F16, False)], "FLAT VECTOR"),
    ("one element", (1, 1), False, [((1, 1), F16, False), ((1, 1), F16, False)], "FLAT FLAT"),
    ("mixed types", (4, 40), False, [((4, 40), F16, False), ((4, 40), F32, False)], "FLAT FLAT"),
    ("five axes", (2, 3, 2, 3, 4), False, [((2, 3, 2, 3, 4), F32, False), ((3, 1, 3, 1), F32, False)], "FLAT SPLAT"),
]


@pytest.mark.parametrize(
    ("shape", "last", "operands", "modes"), [b[1:] for b in BROADCASTS], ids=[b[0] for b in BROADCASTS]
)
def test_broadcasting(shape, last, operands, modes):
    program = (Pointwise("sub", operand=1, swap=True), Pointwise("mul", operand=0), Pointwise("add", operand=1))
    shapes, dtypes, layouts = zip(*operands, strict=True)
    kernel = check(program, shapes, dtypes, layouts, shape, dtypes[0], last)
    assert " ".join(kernel.defines[f"MODE_{index}"] for index in range(len(operands))) == modes


def test_eight_operands():
    program = tuple(Pointwise("add" if index % 2 else "mul", operand=index) for index in range(1, 8))
    check(program, [(3, 65)] * 8, [F16] * 8, [False] * 8, (3, 65), F16, False)
    with pytest.raises(ValueError, match="9 operands"):
        pointwise([], [Operand((4,), F32, False, Argument("in"))] * 9, (4,), F32, False)


@pytest.mark.parametrize("source", [F32, F16, BF16])
@pytest.mark.parametrize("target", [F32, F16, BF16])
def test_conversion_of_types(source, target):
    values = np.concatenate(
        [SPECIAL, np.random.default_rng(2).standard_normal(500) * 10.0 ** np.arange(-9, 6).repeat(34)[:500]]
    )
    with np.errstate(over="ignore"):
        check((), [values.shape], [source], [False], values.shape, target, False, [values], 0.0)


def test_the_shape_is_left_out_where_it_does_not_matter():
    def defines(shape):
        return pointwise([], [Operand(shape, F16, False, Argument("in"))], shape, F16, False).defines

    assert defines((3, 5)) == defines((64, 128))


def test_operands_that_do_not_broadcast():
    with pytest.raises(ValueError, match="does not broadcast"):
        pointwise([], [Operand((3,), F32, False, Argument("in"))], (4,), F32, False)
