"""Small checks that the shape rules of ``infer`` share."""

from __future__ import annotations

from collections.abc import Sequence

from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.ops import Op
from tamis.errors import BuildError


def refuse(op: Op, cause: str) -> BuildError:
    """The error for inputs that do not fit ``op``."""
    return BuildError(f"{type(op).__name__}: {cause}")


def need(op: Op, inputs: Sequence[TensorType], least: int, *, most: int | None = 0) -> None:
    """Check the number of inputs: exactly ``least``, or at least that many when ``most`` is None."""
    if len(inputs) < least or (most is not None and len(inputs) > max(least, most)):
        raise refuse(op, f"needs {least} inputs, got {len(inputs)}")


def axis_of(op: Op, axis: int, rank: int) -> int:
    """``axis`` counted from the front; an error when it is not within ``rank`` axes."""
    if not -rank <= axis < rank:
        raise refuse(op, f"axis {axis} is not within {rank} axes")
    return axis % rank


def broadcast(op: Op, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy's broadcasting of shapes."""
    rank = max(map(len, shapes), default=0)
    result = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            if size == 1 or size == result[axis]:
                continue
            if result[axis] != 1:
                raise refuse(op, f"shapes {', '.join(str(list(s)) for s in shapes)} do not broadcast together")
            result[axis] = size
    return tuple(result)


def same_dtype(op: Op, inputs: Sequence[TensorType]) -> None:
    """Check that all inputs have one element type."""
    if len({tensor.dtype for tensor in inputs}) > 1:
        raise refuse(op, f"mixes element types: {', '.join(map(str, inputs))}")
