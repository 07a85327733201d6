"""The meaning of every operator, in NumPy.

This is the oracle: constant folding uses it and tests compare against it. Results keep the precision of the
inputs, so the same graph can be run in float64 for a reference. Clear and correct comes first; the code is
vectorised enough for whole small networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tamis.compiler.ir.evaluate_movement import MOVEMENT
from tamis.compiler.ir.evaluate_normalization import NORMALIZATION, softmax
from tamis.compiler.ir.evaluate_pointwise import apply_program
from tamis.compiler.ir.evaluate_reduction import REDUCTION
from tamis.compiler.ir.evaluate_resize import resize
from tamis.compiler.ir.evaluate_spatial import SPATIAL
from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import (
    Attention,
    Cast,
    Dequantize,
    Einsum,
    Elementwise,
    Linear,
    MatMul,
    Op,
    Quantize,
    Resize,
    Where,
    epilogue_of,
)
from tamis.errors import BuildError, InputError
from tamis.formats.dtype import DType

Arrays = Sequence[np.ndarray]


def evaluate(op: Op, inputs: Arrays) -> tuple[np.ndarray, ...]:
    """All results of ``op`` on concrete arrays.

    Floating point stays as precise as it comes: float64 in, float64 out. The inputs are trusted to fit;
    ``infer`` is the check.

    Raises:
        BuildError: the operator has no meaning here.
    """
    function = MEANINGS.get(type(op))
    if function is None:
        raise BuildError(f"{type(op).__name__}: no NumPy meaning exists for this operator")
    with np.errstate(all="ignore"):
        result = function(op, inputs)
        results = list(result) if isinstance(result, tuple) else [result]
        program = epilogue_of(op)
        if program:
            results[0] = apply_program(program, results[0], inputs)
    return tuple(np.asarray(array) for array in results)


def run(graph: Graph, inputs: Mapping[str, np.ndarray], *, exact: bool = False) -> dict[str, np.ndarray]:
    """Walk the nodes of a graph.

    Args:
        graph: what to run.
        inputs: one array for each graph input, with the declared shape.
        exact: compute all floating point in float64; casts between floating-point types do nothing then.

    Returns:
        The graph's outputs by name.

    Raises:
        InputError: an input is missing or has another shape.
    """
    values: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        if name not in inputs:
            raise InputError(f"input '{name}' is missing", remedy=f"give all of: {', '.join(graph.inputs)}")
        array = np.asarray(inputs[name])
        if tuple(array.shape) != graph.types[name].shape:
            raise InputError(f"input '{name}' has shape {array.shape}, expected {graph.types[name].shape}")
        values[name] = _promote(array, exact)
    last_use = {value: index for index, node in enumerate(graph.nodes) for value in node.inputs}
    keep = set(graph.outputs)
    for index, node in enumerate(graph.nodes):
        arguments = [values[name] if name in values else _promote(graph.constants[name], exact) for name in node.inputs]
        vanishes = exact and isinstance(node.op, Cast) and node.op.to.is_float
        results = (arguments[0],) if vanishes else evaluate(node.op, arguments)
        for name, array in zip(node.outputs, results, strict=False):
            values[name] = _promote(array, exact)
        for name in {*node.inputs, *node.outputs} - keep:
            if last_use.get(name, index) == index:
                values.pop(name, None)
    return {name: values[name] if name in values else graph.constants[name] for name in graph.outputs}


def _promote(array: np.ndarray, exact: bool) -> np.ndarray:
    return array.astype(np.float64) if exact and DType.of(array).is_float else array


def _elementwise(op: Elementwise, inputs: Arrays) -> np.ndarray:
    return apply_program(op.program, inputs[0], inputs)


def _linear(op: Linear, inputs: Arrays) -> np.ndarray:
    result = inputs[0] @ inputs[1].T
    return np.asarray(result + inputs[2] if op.bias else result)


def _matmul(op: MatMul, inputs: Arrays) -> np.ndarray:
    return np.asarray(inputs[0] @ inputs[1])


def _attention(op: Attention, inputs: Arrays) -> np.ndarray:
    q, k, v = inputs[:3]
    scores = (q @ np.swapaxes(k, -1, -2)) * q.dtype.type(op.scale)
    if op.mask:
        mask = inputs[3]
        scores = np.where(mask, scores, -np.inf).astype(scores.dtype) if mask.dtype == bool else scores + mask
    nothing_left = np.isneginf(scores).all(axis=-1, keepdims=True)
    return np.asarray(np.where(nothing_left, 0, softmax(scores, -1)) @ v)


def _where(op: Where, inputs: Arrays) -> np.ndarray:
    return np.where(*inputs)


def _cast(op: Cast, inputs: Arrays) -> np.ndarray:
    x = inputs[0]
    if op.to == DType.FLOAT8_E4M3:
        x = np.clip(x.astype(np.float32), -448, 448)
    if op.to == DType.BOOL:
        return np.asarray(x != 0)
    return x.astype(op.to.numpy)


def _einsum(op: Einsum, inputs: Arrays) -> np.ndarray:
    return np.asarray(np.einsum(op.equation.replace(" ", ""), *inputs, optimize=True))


def _along(axis: int, rank: int, parameter: np.ndarray) -> np.ndarray:
    """A per-channel parameter shaped to broadcast along ``axis``; a scalar as it is."""
    if parameter.size == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    shape = [1] * rank
    shape[axis] = parameter.size
    return parameter.reshape(shape)


def _quantize(op: Quantize, inputs: Arrays) -> np.ndarray:
    x, scale, zero = (inputs[0], *(_along(op.axis, inputs[0].ndim, p) for p in inputs[1:]))
    if op.to == DType.FLOAT8_E4M3:
        return np.asarray(np.clip((x / scale).astype(np.float32), -448, 448)).astype(op.to.numpy)
    limits = np.iinfo(op.to.numpy)
    steps = np.rint(x / scale) + zero.astype(np.float64)
    return np.asarray(np.clip(steps, limits.min, limits.max)).astype(op.to.numpy)


def _dequantize(op: Dequantize, inputs: Arrays) -> np.ndarray:
    x, scale, zero = (inputs[0], *(_along(op.axis, inputs[0].ndim, p) for p in inputs[1:]))
    if DType.of(x).is_float:
        return np.asarray(x.astype(scale.dtype) * scale)
    steps = np.asarray(x.astype(np.int64) - zero.astype(np.int64))
    return np.asarray(steps.astype(scale.dtype) * scale)


def _resize(op: Resize, inputs: Arrays) -> np.ndarray:
    return resize(op, inputs[0])


Meaning = Callable[[Any, Arrays], "np.ndarray | tuple[np.ndarray, ...]"]

MEANINGS: Mapping[type, Meaning] = MappingProxyType(
    {
        Linear: _linear,
        MatMul: _matmul,
        Attention: _attention,
        Elementwise: _elementwise,
        Where: _where,
        Cast: _cast,
        Einsum: _einsum,
        Quantize: _quantize,
        Dequantize: _dequantize,
        Resize: _resize,
        **SPATIAL,
        **NORMALIZATION,
        **REDUCTION,
        **MOVEMENT,
    }
)
