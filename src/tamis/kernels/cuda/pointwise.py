"""Constants and launch of ``pointwise.cu``: how operands lie against the output, and the program as macro steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from tamis.formats.dtype import DType
from tamis.kernels.cuda.specification import ELEMENTS, VECTOR_BYTES, Argument, Kernel, ceil_divide

MOST_OPERANDS = 8
_THREADS = 256


@dataclass(frozen=True)
class Operand:
    """A tensor that a program reads: logical shape, element type, order of axes, and where it comes from."""

    shape: tuple[int, ...]
    dtype: DType
    channels_last: bool
    source: Argument


@dataclass(frozen=True)
class PointwiseStep:
    """``value = kind(value, *numbers)``, or with an operand (an index) or a number as the other argument."""

    kind: str
    numbers: tuple[float, ...] = ()
    operand: int | None = None
    swap: bool = False


def physical_order(rank: int, channels_last: bool) -> tuple[int, ...]:
    """The axes of a tensor as they lie in memory, outermost first."""
    return (0, *range(2, rank), 1) if channels_last and rank > 2 else tuple(range(rank))


def dense_strides(shape: Sequence[int], channels_last: bool) -> list[int]:
    """Strides in elements of a dense tensor, by logical axis."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(physical_order(len(shape), channels_last)):
        strides[axis] = step
        step *= shape[axis]
    return strides


def pointwise(
    steps: Sequence[PointwiseStep],
    operands: Sequence[Operand],
    shape: tuple[int, ...],
    dtype: DType,
    channels_last: bool,
) -> Kernel:
    """The kernel that runs a program on ``operands[0]`` and writes the step's output 0.

    ``shape``, ``dtype`` and ``channels_last`` are the output's. ``ValueError`` for more than eight operands.
    """
    if not 1 <= len(operands) <= MOST_OPERANDS:
        raise ValueError(f"{len(operands)} operands; the kernel takes 1 to {MOST_OPERANDS}")
    width = VECTOR_BYTES // min(o.dtype.size_bytes for o in (*operands, Operand(shape, dtype, False, Argument("out"))))
    order = physical_order(len(shape), channels_last)
    output = [dense_strides(shape, channels_last)[axis] for axis in order]
    tables = [[_broadcast_strides(operand, shape)[axis] for axis in order] for operand in operands]
    extents, collapsed = _collapse([shape[axis] for axis in order], [output, *tables])
    defines: dict[str, str | int | float] = {
        "WIDTH": width,
        "OPERANDS": len(operands),
        "OUT_TYPE": ELEMENTS[dtype],
        "PROGRAM": program_text(steps),
    }
    flat = all(strides == collapsed[0] for strides in collapsed[1:])
    # What the kernel need not know is left out, so that layers of many sizes share one cubin: the shape where nothing
    # is broadcast, else the outermost extent.
    extents = [1] if flat else extents
    defines |= {"RANK": len(extents), "EXTENTS": _list([1, *extents[1:]])}
    for index, (operand, strides) in enumerate(zip(operands, collapsed[1:], strict=True)):
        same = strides == collapsed[0]
        defines[f"TYPE_{index}"] = ELEMENTS[operand.dtype]
        defines[f"MODE_{index}"] = "FLAT" if same else _mode(strides, extents, width)
        defines[f"STRIDES_{index}"] = _list([0] * len(extents) if same else strides)
    elements = prod(shape)
    sources = [operand.source for operand in operands] + [Argument("null")] * (MOST_OPERANDS - len(operands))
    grid = (max(ceil_divide(elements, width * _THREADS), 1), 1, 1)
    return Kernel(
        "pointwise", defines, grid, (_THREADS, 1, 1), (Argument("out", 0), Argument("int", elements), *sources)
    )


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _broadcast_strides(operand: Operand, shape: Sequence[int]) -> list[int]:
    """Strides of an operand over the output's logical axes, 0 where it is repeated."""
    own = dense_strides(operand.shape, operand.channels_last)
    missing = len(shape) - len(operand.shape)
    strides = [0] * missing
    for extent, stride, target in zip(operand.shape, own, shape[missing:], strict=True):
        if extent not in (1, target):
            raise ValueError(f"an operand of shape {operand.shape} does not broadcast to {tuple(shape)}")
        strides.append(0 if extent == 1 else stride)
    return strides


def _collapse(extents: Sequence[int], tables: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Fewer axes with the same addresses: axes of extent 1 go, neighbours that all tensors walk as one are joined."""
    kept: list[int] = []
    strides: list[list[int]] = [[] for _ in tables]
    for axis in reversed(range(len(extents))):
        extent, here = extents[axis], [table[axis] for table in tables]
        if extent == 1:
            continue
        if kept and all(s[0] * kept[0] == step for s, step in zip(strides, here, strict=True)):
            kept[0] *= extent
            continue
        kept.insert(0, extent)
        for table, step in zip(strides, here, strict=True):
            table.insert(0, step)
    return (kept, strides) if kept else ([1], [[0] for _ in tables])


def _mode(strides: Sequence[int], extents: Sequence[int], width: int) -> str:
    if not any(strides):
        return "SPLAT"
    if extents[-1] % width:
        return "ELEMENT"
    if strides[-1] == 0:
        return "SPLAT"
    return "VECTOR" if strides[-1] == 1 and not any(stride % width for stride in strides[:-1]) else "ELEMENT"


def program_text(steps: Sequence[PointwiseStep]) -> str:
    """A program as macro steps."""
    return " ".join(_macro(step) for step in steps)


def _macro(step: PointwiseStep) -> str:
    numbers = [number_text(number) for number in step.numbers]
    if step.operand is not None:
        numbers = [f"ARGUMENT({step.operand})", *numbers]
    arguments = [*numbers, "value"] if step.swap else ["value", *numbers]
    return f"STEP({step.kind}, {', '.join(arguments)})"


def number_text(number: float) -> str:
    """A number as a float32 literal, exactly."""
    value = float(np.float32(number))
    if math.isnan(value):
        return "TAMIS_NAN"
    if math.isinf(value):
        return "TAMIS_INFINITY" if value > 0 else "(-TAMIS_INFINITY)"
    text = f"{value.hex()}f"
    return f"({text})" if value < 0 or text.startswith("-") else text
