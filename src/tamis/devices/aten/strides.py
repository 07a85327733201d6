"""What the ``aten`` kernels do with strides: who hands out views, and who reads them without a copy.

All of it is known before anything runs, so that the planner can tell which values need not be dense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from tamis.devices.strides import Strides, reshaped
from tamis.engine.plan import Step

Shape = Sequence[int]
ViewRule = Callable[[Mapping[str, Any], Shape, Shape, Sequence[Shape]], "tuple[Strides, ...] | None"]
ReadRule = Callable[[Shape, Shape], bool]


def _transpose(a: Mapping[str, Any], shape: Shape, strides: Shape, outputs: Sequence[Shape]) -> tuple[Strides, ...]:
    return (tuple(strides[int(axis)] for axis in a["perm"]),)


def _split(a: Mapping[str, Any], shape: Shape, strides: Shape, outputs: Sequence[Shape]) -> tuple[Strides, ...]:
    return (tuple(strides),) * len(outputs)


def _slice(a: Mapping[str, Any], shape: Shape, strides: Shape, outputs: Sequence[Shape]) -> tuple[Strides, ...] | None:
    found = list(strides)
    for axis, start, stop, step in zip(a["axes"], a["starts"], a["stops"], a["steps"], strict=True):
        if len(range(*slice(start, stop, step).indices(shape[axis]))) != shape[axis] or step != 1:
            if step < 0:
                return None  # torch has no backward views
            found[axis] *= step
    return (tuple(found),)


def _reshape(
    a: Mapping[str, Any], shape: Shape, strides: Shape, outputs: Sequence[Shape]
) -> tuple[Strides, ...] | None:
    found = reshaped(shape, strides, outputs[0])
    return None if found is None else (found,)


# The steps whose results can be views of their first input, and the strides these then have.
VIEWS: Mapping[str, ViewRule] = {
    "aten.reshape": _reshape,
    "aten.slice": _slice,
    "aten.split": _split,
    "aten.transpose": _transpose,
}


def _any(shape: Shape, strides: Shape) -> bool:
    return True


def _rows(shape: Shape, strides: Shape) -> bool:
    """Elements of the last axis lie side by side, so that kernels can use vectors along it."""
    return bool(shape) and strides[-1] == 1


def _heads(shape: Shape, strides: Shape) -> bool:
    """torch's fast attention: rank four, dense along the last axis; others are computed step by step."""
    return len(shape) == 4 and strides[-1] == 1


def _matrix(shape: Shape, strides: Shape) -> bool:
    """Rows of one distance after all leading axes are merged, as a matrix product of BLAS takes them."""
    if len(shape) < 2 or strides[-1] != 1:
        return False
    merged = reshaped(shape, strides, (prod(shape[:-1]), shape[-1]))
    return merged is not None and merged[0] >= shape[-1]


def _matrices(shape: Shape, strides: Shape) -> bool:
    """A stack of matrices, each stored by rows or by columns, at one distance from each other."""
    if len(shape) < 2 or 1 not in strides[-2:]:
        return False
    return reshaped(shape, strides, (prod(shape[:-2]), *shape[-2:])) is not None


# Which operands may have other strides than dense ones: those that these kernels read in place. Operands that
# are not named here (weights, masks, epilogues) and kernels that are not (softmax, normalisations, which make
# their input dense first) want dense values. ``None`` stands for every operand.
READS: Mapping[str, Mapping[int | None, ReadRule]] = {
    "aten.attention": {0: _heads, 1: _heads, 2: _heads},
    "aten.concat": {None: _any},
    "aten.convert": {None: _any},
    "aten.elementwise": {None: _rows},
    "aten.linear": {0: _matrix},
    "aten.mat_mul": {0: _matrices, 1: _matrices},
    "aten.where": {None: _rows},
}


def view_strides(
    step: Step, shape: Shape, strides: Shape, outputs: Sequence[Shape]
) -> tuple[Strides, ...] | None:  # fmt: skip
    """The strides of a step's outputs as views of its first input, or None where it computes or copies."""
    rule = VIEWS.get(step.kernel)
    if rule is None or len(step.inputs) != 1 or step.attributes.get("arguments", ["in0"])[0] != "in0":
        return None
    return rule(step.attributes, shape, strides, outputs)


def reads_strided(step: Step, index: int, shape: Shape, strides: Shape) -> bool:
    """Whether a step reads its input ``index`` in place when it has these strides."""
    rules = READS.get(step.kernel)
    if rules is None:
        return False
    places = step.attributes.get("arguments", [f"in{i}" for i in range(len(step.inputs))])
    used = [position for position, name in enumerate(places) if name == f"in{index}"]
    found = [rules.get(position, rules.get(None)) for position in used]
    return bool(found) and all(rule is not None and rule(shape, strides) for rule in found)


def natural_strides(step: Step, inputs: Sequence[Shape]) -> Strides | None:
    """How a kernel leaves its result on the CPU when nobody asks for a dense one; None for dense, or unknown.

    torch's fast attention writes ``[B, H, S, D]`` in the order of ``[B, S, H, D]``. This is a forecast: a step
    that must have dense values still makes sure of it.
    """
    index = queries_of(step, inputs) if step.kernel == "aten.attention" else None
    return None if index is None else by_token(inputs[index])


def by_token(shape: Shape) -> Strides:
    """The strides of heads ``[B, H, S, D]`` that lie in memory as ``[B, S, H, D]``."""
    _, heads, length, depth = shape
    return (heads * length * depth, depth, heads * depth, 1)


def queries_of(step: Step, inputs: Sequence[Shape]) -> int | None:
    """Which input of an attention holds the queries, where all three operands are heads of one size; or None."""
    places = {f"in{index}": index for index in range(len(inputs))}
    operands = [places.get(name) for name in step.attributes.get("arguments", list(places))[:3]]
    shapes = [tuple(inputs[index]) for index in operands if index is not None]
    if len(shapes) < 3 or any(len(shape) != 4 for shape in shapes):
        return None
    alike = {(batch, heads, depth) for batch, heads, _, depth in shapes}
    return operands[0] if len(alike) == 1 else None
