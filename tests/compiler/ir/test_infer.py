"""Shapes that do not fit are refused with a message; test_evaluate checks the shapes that do."""

from __future__ import annotations

import pytest

from tamis.compiler.ir import ops
from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.infer_spatial import pooled_size
from tamis.errors import BuildError
from tamis.formats.dtype import DType

CONV = ops.Conv((1, 1), (0, 0, 0, 0), (1, 1))
ADD = ops.Elementwise((ops.Pointwise("add", operand=1),))
I64 = DType.INT64


def typed(*shape: int, dtype: DType = DType.FLOAT32) -> TensorType:
    return TensorType(shape, dtype)


MISFITS: list[tuple[ops.Op, list[TensorType], str]] = [
    (CONV, [typed(1, 3, 8, 8), typed(4, 2, 3, 3)], "Conv: x float32[1,3,8,8] does not fit weight"),
    (CONV, [typed(1, 3, 8, 8), typed(4, 3, 9, 9)], "larger than the padded input"),
    (CONV, [typed(1, 3, 8), typed(4, 3, 3)], "strides [1, 1] must have 1 entries"),
    (CONV, [typed(1, 3, 8, 8), typed(4, 3, 3)], "same rank"),
    (CONV, [typed(1, 3, 8, 8)], "needs 2 inputs, got 1"),
    (ops.Conv((1,), (0, -1), (1,)), [typed(1, 3, 8), typed(4, 3, 3)], "must not be negative"),
    (ops.Conv((0,), (0, 0), (1,)), [typed(1, 3, 8), typed(4, 3, 3)], "at least 1"),
    (ops.Conv((1,), (0, 0), (1,), bias=True), [typed(1, 3, 8), typed(4, 3, 3), typed(3)], "bias float32[3]"),
    (ops.ConvTranspose((1,), (0, 0), (1,), (0,)), [typed(1, 3, 8), typed(4, 3, 3)], "does not fit weight"),
    (ops.ConvTranspose((1,), (9, 9), (1,), (0,)), [typed(1, 3, 8), typed(3, 4, 3)], "leave nothing"),
    (ops.Linear(), [typed(2, 5), typed(4, 6)], "does not fit weight float32[4,6]"),
    (ops.Linear(), [typed(2, 6, dtype=DType.FLOAT64), typed(4, 6)], "mixes element types"),
    (ops.Linear(bias=True), [typed(2, 6), typed(4, 6), typed(1)], "must have 4 elements"),
    (ops.MatMul(), [typed(2, 5), typed(4, 6)], "inner sizes differ: [2, 5] @ [4, 6]"),
    (ops.MatMul(), [typed(3, 2, 5), typed(2, 5, 6)], "do not broadcast"),
    (ops.MatMul(), [typed(), typed(2, 5)], "a scalar"),
    (ops.Attention(1.0), [typed(2, 4, 8), typed(2, 5, 7), typed(2, 5, 8)], "inner sizes differ"),
    (ops.Attention(1.0, True), [typed(4, 8), typed(5, 8), typed(5, 8), typed(3, 5)], "do not broadcast"),
    (ADD, [typed(2, 3), typed(2, 4)], "shapes [2, 3], [2, 4] do not broadcast"),
    (ADD, [typed(2), typed(2, dtype=I64)], "'add' mixes float32 and int64"),
    (ops.Elementwise((ops.Pointwise("add", operand=2),)), [typed(2)], "reads input 2, but there are 1"),
    (ops.Elementwise((ops.Pointwise("blur"),)), [typed(2)], "'blur' is not a unary"),
    (ops.Elementwise((ops.Pointwise("relu", operand=0),)), [typed(2)], "'relu' is not a binary"),
    (ops.Where(), [typed(2), typed(2), typed(2)], "must be bool"),
    (ops.Softmax(2), [typed(2, 3)], "axis 2 is not within 2 axes"),
    (ops.LayerNorm(1, 0.1), [typed(2, 3), typed(3), typed(3)], "must be negative"),
    (ops.LayerNorm(-1, 0.1), [typed(2, 3), typed(4), typed(3)], "do not broadcast"),
    (ops.LayerNorm(-1, 0.1, residual=True), [typed(2, 3), typed(3), typed(3), typed(3)], "residual"),
    (ops.BatchNorm(0.1), [typed(2, 3), *[typed(4)] * 4], "one element for each of the 3 channels"),
    (ops.GroupNorm(2, 0.1), [typed(2, 3), typed(3), typed(3)], "3 channels cannot be cut into 2 groups"),
    (ops.Pool("max", (9,), (1,), (0, 0), (1,)), [typed(1, 1, 8)], "larger than the padded input"),
    (ops.Pool("max", (2, 2), (1,), (0, 0), (1,)), [typed(1, 1, 8)], "does not fit x"),
    (ops.Reduce("sum", (1, 0), True), [typed(2, 3)], "sorted, distinct"),
    (ops.Reduce("sum", (2,), True), [typed(2, 3)], "within the axes"),
    (ops.ArgReduce("max", 3, True), [typed(2, 3)], "axis 3"),
    (ops.TopK(4, 1), [typed(2, 3)], "k = 4 is not within the 3 elements"),
    (ops.Reshape((5,)), [typed(2, 3)], "float32[2,3] cannot become [5]"),
    (ops.Transpose((0, 0)), [typed(2, 3)], "not a permutation"),
    (ops.Concat(0), [typed(2, 3), typed(2, 4)], "do not join along axis 0"),
    (ops.Concat(0), [typed(2), typed(2, dtype=I64)], "mixes element types"),
    (ops.Split(0, (1, 2)), [typed(2)], "cannot be cut along axis 0 into parts of [1, 2]"),
    (ops.Slice((0, 0), (0, 0), (1, 1), (1, 1)), [typed(2)], "name one axis twice"),
    (ops.Slice((0,), (0,), (1,), (0,)), [typed(2)], "a step must not be 0"),
    (ops.Gather(0), [typed(2), typed(2)], "must be int32 or int64"),
    (ops.Gather(1), [typed(2), typed(2, dtype=I64)], "axis 1 is not within 1 axes"),
    (ops.GatherElements(0), [typed(2, 3), typed(2, 4, dtype=I64)], "do not fit data"),
    (ops.GatherND(), [typed(2), typed(1, 2, dtype=I64)], "do not fit data"),
    (ops.GatherND(1), [typed(2, 3), typed(3, 1, dtype=I64)], "batch axes"),
    (ops.ScatterElements(0), [typed(2), typed(2, dtype=I64), typed(3)], "do not fit data"),
    (ops.ScatterND(), [typed(2, 3), typed(1, 1, dtype=I64), typed(1, 2)], "do not fit data"),
    (ops.Expand((3, 3)), [typed(2, 3)], "do not broadcast"),
    (ops.Expand((1, 3)), [typed(2, 3)], "does not broadcast to [1, 3]"),
    (ops.Tile((2,)), [typed(2, 3)], "repeats [2]"),
    (ops.Pad((1, 1)), [typed(2, 3)], "must have 4 entries"),
    (ops.Pad((-2, -1)), [typed(2)], "leave nothing"),
    (ops.Resize((2,), (1.0,), "nearest", "asymmetric"), [typed(2, 3)], "do not fit x"),
    (ops.DepthToSpace(2), [typed(1, 6, 2, 2)], "6 channels cannot be cut"),
    (ops.SpaceToDepth(2), [typed(1, 1, 3, 2)], "3 x 2 cannot be cut"),
    (ops.SpaceToDepth(2), [typed(1, 1, 3)], "[N,C,H,W]"),
    (ops.Triangle(True), [typed(3)], "two axes"),
    (ops.Einsum("ij,jk->ik"), [typed(2, 3)], "2 terms for 1 inputs"),
    (ops.Einsum("ij,jk->ik"), [typed(2, 3), typed(4, 5)], "do not broadcast"),
    (ops.Einsum("ij->iz"), [typed(2, 3)], "an axis that no input has"),
    (ops.Einsum("ijk->i"), [typed(2, 3)], "does not fit float32[2,3]"),
    (ops.Quantize(0, DType.INT8), [typed(3), typed(2), typed(2, dtype=DType.INT8)], "along axis 0"),
    (ops.Quantize(0, DType.INT8), [typed(3), typed(), typed(dtype=DType.UINT8)], "must be int8"),
    (ops.Dequantize(0), [typed(3, dtype=DType.INT8), typed(), typed(1, dtype=DType.INT8)], "differ in shape"),
]


@pytest.mark.parametrize(("op", "inputs", "part"), MISFITS)
def test_misfits_are_refused(op: ops.Op, inputs: list[TensorType], part: str) -> None:
    with pytest.raises(BuildError) as caught:
        infer(op, inputs)
    message = str(caught.value)
    assert part in message and message.startswith(type(op).__name__) and "\n" not in message


def test_every_operator_refuses_something() -> None:
    tested = {type(op) for op, _, _ in MISFITS}
    anything_goes = {ops.Cast, ops.CumSum, ops.LocalResponseNorm}
    assert tested | anything_goes == set(ops.Op.__args__)  # type: ignore[attr-defined]
    for op in (ops.Cast(DType.INT8), ops.CumSum(0), ops.LocalResponseNorm(3, 1, 1, 1)):
        with pytest.raises(BuildError, match="needs 1 inputs, got 0"):
            infer(op, [])


def test_types_of_results() -> None:
    compare = ops.Elementwise((ops.Pointwise("less", operand=1), ops.Pointwise("not")))
    assert infer(compare, [typed(2, 1), typed(3)]) == (typed(2, 3, dtype=DType.BOOL),)
    power = ops.Elementwise((ops.Pointwise("pow", operand=1),))
    assert infer(power, [typed(2), typed(2, dtype=I64)]) == (typed(2),)
    assert infer(ops.Cast(DType.BOOL), [typed(2)]) == (typed(2, dtype=DType.BOOL),)
    assert infer(ops.ArgReduce("max", 0, False), [typed(2, 3)]) == (typed(3, dtype=I64),)
    assert infer(ops.TopK(1, -1), [typed(2, 3)]) == (typed(2, 1), typed(2, 1, dtype=I64))
    quantised = infer(ops.Quantize(0, DType.UINT8), [typed(3), typed(), typed(dtype=DType.UINT8)])
    assert quantised == (typed(3, dtype=DType.UINT8),)
    norm = ops.LayerNorm(-1, 0.1, residual=True)
    assert infer(norm, [typed(2, 3), typed(3), typed(3), typed(2, 3)]) == (typed(2, 3), typed(2, 3))


def test_epilogue_changes_the_type() -> None:
    program = (ops.Pointwise("add", operand=2), ops.Pointwise("greater", operand=3))
    inputs = [typed(2, 5), typed(4, 5), typed(7, 1, 4), typed()]
    assert infer(ops.Linear(epilogue=program), inputs) == (typed(7, 2, 4, dtype=DType.BOOL),)


def test_rank_one_products() -> None:
    assert infer(ops.MatMul(), [typed(5), typed(5)]) == (typed(),)
    assert infer(ops.MatMul(), [typed(5), typed(3, 5, 2)]) == (typed(3, 2),)
    assert infer(ops.MatMul(), [typed(3, 2, 5), typed(5)]) == (typed(3, 2),)
    assert infer(ops.Linear(), [typed(5), typed(4, 5)]) == (typed(4),)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads", "floor", "ceil"),
    [
        (6, 2, 2, (0, 0), 3, 3),
        (7, 2, 2, (0, 0), 3, 4),
        (7, 3, 2, (1, 1), 4, 4),
        (5, 1, 3, (0, 0), 2, 2),
        (4, 1, 2, (0, 0), 2, 2),
        (3, 1, 3, (0, 2), 2, 2),
        (4, 2, 4, (1, 1), 2, 2),  # the last window would start in the padding at the end
    ],
)
def test_ceil_counts_windows_that_start_inside(
    size: int, kernel: int, stride: int, pads: tuple[int, int], floor: int, ceil: int
) -> None:
    for flag, count in ((False, floor), (True, ceil)):
        op = ops.Pool("max", (kernel,), (stride,), pads, (1,), flag)
        assert pooled_size(op, 0, size) == count
