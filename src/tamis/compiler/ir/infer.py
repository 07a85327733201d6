"""Types of the results of every operator, from the types of its inputs.

``infer`` is the check as well: inputs that do not fit an operator end in one ``BuildError`` that names the
operator and what does not fit. The caller adds the layer's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.infer_movement import MOVEMENT_RULES
from tamis.compiler.ir.infer_spatial import SPATIAL_RULES
from tamis.compiler.ir.infer_support import axis_of, broadcast, need, refuse, same_dtype
from tamis.compiler.ir.ops import (
    BINARY_KINDS,
    BOOLEAN_KINDS,
    UNARY_KINDS,
    ArgReduce,
    Attention,
    BatchNorm,
    Cast,
    CumSum,
    Dequantize,
    Einsum,
    Elementwise,
    GroupNorm,
    LayerNorm,
    Linear,
    MatMul,
    Op,
    Program,
    Quantize,
    Reduce,
    Softmax,
    TopK,
    Triangle,
    Where,
    epilogue_of,
    operand_start,
)
from tamis.formats.dtype import DType

Types = tuple[TensorType, ...]


def infer(op: Op, inputs: Sequence[TensorType]) -> Types:
    """Types of all results of ``op``.

    A ``LayerNorm`` with a residual has two results, the second one the sum; the node may name just the first.

    Raises:
        BuildError: the inputs do not fit the operator.
    """
    rule = RULES.get(type(op))
    if rule is None:
        raise refuse(op, "no shape rule exists for this operator")
    results = rule(op, tuple(inputs))
    program = epilogue_of(op)
    if program:
        results = (apply_program(op, results[0], program, tuple(inputs), operand_start(op)), *results[1:])
    return results


def apply_program(op: Op, value: TensorType, program: Program, inputs: Types, first: int) -> TensorType:
    """The type after a pointwise program whose operands are ``inputs[first:]``."""
    for step in program:
        if step.operand is None:
            if step.kind not in UNARY_KINDS:
                raise refuse(op, f"'{step.kind}' is not a unary pointwise kind")
            dtype = DType.BOOL if step.kind in BOOLEAN_KINDS else value.dtype
            value = TensorType(value.shape, dtype)
            continue
        if step.kind not in BINARY_KINDS:
            raise refuse(op, f"'{step.kind}' is not a binary pointwise kind")
        if not 0 <= step.operand < len(inputs):
            raise refuse(op, f"'{step.kind}' reads input {step.operand}, but there are {len(inputs)} inputs")
        operand = inputs[step.operand]
        base = operand if step.swap else value
        if step.kind != "pow" and operand.dtype != value.dtype:
            raise refuse(op, f"'{step.kind}' mixes {value.dtype} and {operand.dtype}")
        dtype = DType.BOOL if step.kind in BOOLEAN_KINDS else base.dtype
        value = TensorType(broadcast(op, value.shape, operand.shape), dtype)
    return value


def _elementwise(op: Elementwise, inputs: Types) -> Types:
    need(op, inputs, 1, most=None)
    return (apply_program(op, inputs[0], op.program, inputs, 1),)


def _linear(op: Linear, inputs: Types) -> Types:
    need(op, inputs, 3 if op.bias else 2, most=None)
    x, weight = inputs[:2]
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise refuse(op, f"x {x} does not fit weight {weight}, which must be [N,K] with K the last axis of x")
    if op.bias and inputs[2].shape != (weight.shape[0],):
        raise refuse(op, f"bias {inputs[2]} must have {weight.shape[0]} elements")
    same_dtype(op, inputs[: 3 if op.bias else 2])
    return (TensorType((*x.shape[:-1], weight.shape[0]), x.dtype),)


def matmul_shape(op: Op, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy's rules for ``a @ b``, ranks 1 included."""
    if not a or not b:
        raise refuse(op, "a scalar cannot be multiplied as a matrix")
    rows = a if len(a) > 1 else (1, *a)
    columns = b if len(b) > 1 else (*b, 1)
    if rows[-1] != columns[-2]:
        raise refuse(op, f"inner sizes differ: {list(a)} @ {list(b)}")
    result = list(broadcast(op, rows[:-2], columns[:-2]))
    result += [rows[-2]] if len(a) > 1 else []
    result += [columns[-1]] if len(b) > 1 else []
    return tuple(result)


def _matmul(op: MatMul, inputs: Types) -> Types:
    need(op, inputs, 2, most=None)
    same_dtype(op, inputs[:2])
    return (TensorType(matmul_shape(op, inputs[0].shape, inputs[1].shape), inputs[0].dtype),)


def _attention(op: Attention, inputs: Types) -> Types:
    need(op, inputs, 4 if op.mask else 3)
    q, k, v = inputs[:3]
    same_dtype(op, inputs[:3])
    if min(len(q.shape), len(k.shape), len(v.shape)) < 2:
        raise refuse(op, f"q {q}, k {k} and v {v} must have at least two axes")
    scores = matmul_shape(op, q.shape, (*k.shape[:-2], k.shape[-1], k.shape[-2]))
    if op.mask and broadcast(op, scores, inputs[3].shape) != scores:
        raise refuse(op, f"mask {inputs[3]} does not broadcast to the scores {list(scores)}")
    return (TensorType(matmul_shape(op, scores, v.shape), q.dtype),)


def _where(op: Where, inputs: Types) -> Types:
    need(op, inputs, 3)
    condition, a, b = inputs
    if condition.dtype != DType.BOOL:
        raise refuse(op, f"the condition must be bool, not {condition.dtype}")
    same_dtype(op, (a, b))
    return (TensorType(broadcast(op, condition.shape, a.shape, b.shape), a.dtype),)


def _cast(op: Cast, inputs: Types) -> Types:
    need(op, inputs, 1)
    return (TensorType(inputs[0].shape, op.to),)


def _same_along_axis(op: Softmax | CumSum, inputs: Types) -> Types:
    need(op, inputs, 1)
    axis_of(op, op.axis, len(inputs[0].shape))
    return (inputs[0],)


def _layer_norm(op: LayerNorm, inputs: Types) -> Types:
    need(op, inputs, 1 + op.scale + op.bias + op.residual)
    x = inputs[0]
    if not -len(x.shape) <= op.axis < 0:
        raise refuse(op, f"axis {op.axis} must be negative and within the {len(x.shape)} axes of x")
    for extra in inputs[1 : 1 + op.scale + op.bias]:
        if broadcast(op, x.shape, extra.shape) != x.shape:
            raise refuse(op, f"scale or bias {extra} does not broadcast to x {x}")
    if op.residual and inputs[-1].shape != x.shape:
        raise refuse(op, f"residual {inputs[-1]} must have the shape of x {x}")
    return (x, x) if op.residual else (x,)


def _batch_norm(op: BatchNorm, inputs: Types) -> Types:
    need(op, inputs, 5)
    return _per_channel(op, inputs)


def _group_norm(op: GroupNorm, inputs: Types) -> Types:
    need(op, inputs, 3)
    result = _per_channel(op, inputs)
    if op.groups < 1 or inputs[0].shape[1] % op.groups:
        raise refuse(op, f"{inputs[0].shape[1]} channels cannot be cut into {op.groups} groups")
    return result


def _per_channel(op: Op, inputs: Types) -> Types:
    x = inputs[0]
    if len(x.shape) < 2:
        raise refuse(op, f"x {x} must be [N,C,...]")
    for extra in inputs[1:]:
        if extra.shape != (x.shape[1],):
            raise refuse(op, f"a parameter {extra} must have one element for each of the {x.shape[1]} channels")
    return (x,)


def _reduced_shape(shape: tuple[int, ...], axes: tuple[int, ...], keep: bool) -> tuple[int, ...]:
    if keep:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _reduce(op: Reduce, inputs: Types) -> Types:
    need(op, inputs, 1)
    x = inputs[0]
    if any(not 0 <= axis < len(x.shape) for axis in op.axes) or list(op.axes) != sorted(set(op.axes)):
        raise refuse(op, f"axes {list(op.axes)} must be sorted, distinct and within the axes of {x}")
    return (TensorType(_reduced_shape(x.shape, op.axes, op.keep), x.dtype),)


def _arg_reduce(op: ArgReduce, inputs: Types) -> Types:
    need(op, inputs, 1)
    axis = axis_of(op, op.axis, len(inputs[0].shape))
    return (TensorType(_reduced_shape(inputs[0].shape, (axis,), op.keep), DType.INT64),)


def _top_k(op: TopK, inputs: Types) -> Types:
    need(op, inputs, 1)
    x = inputs[0]
    axis = axis_of(op, op.axis, len(x.shape))
    if not 0 <= op.k <= x.shape[axis]:
        raise refuse(op, f"k = {op.k} is not within the {x.shape[axis]} elements along axis {axis}")
    shape = (*x.shape[:axis], op.k, *x.shape[axis + 1 :])
    return TensorType(shape, x.dtype), TensorType(shape, DType.INT64)


def _triangle(op: Triangle, inputs: Types) -> Types:
    need(op, inputs, 1)
    if len(inputs[0].shape) < 2:
        raise refuse(op, f"x {inputs[0]} must have at least two axes")
    return (inputs[0],)


def _einsum(op: Einsum, inputs: Types) -> Types:
    need(op, inputs, 1, most=None)
    same_dtype(op, inputs)
    equation = op.equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(inputs):
        raise refuse(op, f"equation '{equation}' has {len(terms)} terms for {len(inputs)} inputs")
    sizes: dict[str, int] = {}
    dots: tuple[int, ...] = ()
    for term, tensor in zip(terms, inputs, strict=True):
        head, ellipsis, tail = term.partition("...")
        extra = len(tensor.shape) - len(head) - len(tail)
        if extra < 0 or (extra and not ellipsis):
            raise refuse(op, f"term '{term}' of '{equation}' does not fit {tensor}")
        dots = broadcast(op, dots, tensor.shape[len(head) : len(head) + extra])
        labelled = [*zip(head, tensor.shape, strict=False)]
        labelled += [*zip(tail, tensor.shape[len(head) + extra :], strict=True)]
        for label, size in labelled:
            (sizes[label],) = broadcast(op, (sizes.get(label, 1),), (size,))
    if not arrow:
        once = sorted(label for label in sizes if left.count(label) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    head, ellipsis, tail = right.partition("...")
    if any(label not in sizes for label in head + tail):
        raise refuse(op, f"the result of '{equation}' names an axis that no input has")
    shape = tuple(sizes[label] for label in head) + (dots if ellipsis else ())
    return (TensorType(shape + tuple(sizes[label] for label in tail), inputs[0].dtype),)


def _scale_fits(op: Quantize | Dequantize, inputs: Types) -> None:
    need(op, inputs, 3)
    x, scale, zero = inputs
    if scale.shape != zero.shape:
        raise refuse(op, f"scale {scale} and zero point {zero} differ in shape")
    if scale.elements == 1 and len(scale.shape) <= 1:
        return
    axis = axis_of(op, op.axis, len(x.shape))
    if scale.shape != (x.shape[axis],):
        raise refuse(op, f"scale {scale} must have one element for each of the {x.shape[axis]} along axis {axis}")


def _quantize(op: Quantize, inputs: Types) -> Types:
    _scale_fits(op, inputs)
    if inputs[2].dtype != op.to:
        raise refuse(op, f"zero point {inputs[2]} must be {op.to}")
    return (TensorType(inputs[0].shape, op.to),)


def _dequantize(op: Dequantize, inputs: Types) -> Types:
    _scale_fits(op, inputs)
    if inputs[0].dtype != inputs[2].dtype:
        raise refuse(op, f"x {inputs[0]} and zero point {inputs[2]} differ in type")
    return (TensorType(inputs[0].shape, inputs[1].dtype),)


Rule = Callable[[Any, Types], Types]

RULES: Mapping[type, Rule] = MappingProxyType(
    {
        Linear: _linear,
        MatMul: _matmul,
        Attention: _attention,
        Elementwise: _elementwise,
        Where: _where,
        Cast: _cast,
        Softmax: _same_along_axis,
        CumSum: _same_along_axis,
        LayerNorm: _layer_norm,
        BatchNorm: _batch_norm,
        GroupNorm: _group_norm,
        Reduce: _reduce,
        ArgReduce: _arg_reduce,
        TopK: _top_k,
        Triangle: _triangle,
        Einsum: _einsum,
        Quantize: _quantize,
        Dequantize: _dequantize,
        **SPATIAL_RULES,
        **MOVEMENT_RULES,
    }
)
