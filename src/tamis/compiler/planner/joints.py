"""Pieces of a Concat that are written where they belong.

Our kernels for tensor cores can leave their results between those of others: pixels so many elements apart, from some
element on (``place`` in ``kernels.cuda.specification.Kernel``). So a step whose result goes into one Concat alone
writes into the joint value itself, and the Concat copies what is left, or is no step any more. The binary stays.

A Concat can write zeros behind its pieces as well, so a step that does nothing but pad rows behind it goes too.

The joint value is then written by several steps. All but the first also read it: what they find there they leave, and
nobody takes the value for made before the last of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tamis.compiler.planner.views import Flow
from tamis.engine.plan import Format, Step

_MULTIPLE = 8  # elements, of all places


@dataclass(frozen=True)
class _Piece:
    """Of a joint value: the piece's value and its first element in each pixel."""

    value: str
    start: int


def aligned_by_joins(
    flow: Flow, shapes: Mapping[str, tuple[tuple[int, ...], Format]], outputs: Collection[str]
) -> Flow:
    """The same flow where a Concat whose rows are padded next, and read by nobody else, writes the padded rows."""
    read = _times_read(flow)
    joint = {step.outputs[0] for step in flow.steps if "joins" in step.attributes and read[step.outputs[0]] == 1}
    pads = {step.inputs[0]: step for step in flow.steps if "aligns" in step.attributes}
    pads = {value: pad for value, pad in pads.items() if value in joint and value not in outputs}
    steps = [
        _padding(step, pads[value], shapes[value][0][-1]) if (value := step.outputs[0]) in pads else step
        for step in flow.steps
        if step not in pads.values()
    ]
    return Flow(tuple(steps), flow.aliases, flow.copied)


def joined_in_place(flow: Flow, shapes: Mapping[str, tuple[tuple[int, ...], Format]], outputs: Collection[str]) -> Flow:
    """The same flow with pieces written in place, wherever a kernel can and nobody else reads them."""
    read = _times_read(flow)
    placeable = {step.outputs[0] for step in flow.steps if "place" in step.attributes and len(step.outputs) == 1}
    steps: list[Step] = list(flow.steps)
    for join in flow.steps:
        if "joins" not in join.attributes:
            continue
        (whole,), (total, pieces) = join.outputs, _pieces(join)
        written = {value: index for index, step in enumerate(steps) for value in step.outputs}
        times = Counter(piece.value for piece in pieces)
        chosen = [
            (written[piece.value], piece)
            for piece in pieces
            if piece.value in placeable
            and piece.value not in outputs
            and read[piece.value] == times[piece.value] == 1
            and shapes[piece.value][1] == shapes[whole][1]
            and total % _MULTIPLE == piece.start % _MULTIPLE == 0
        ]
        for order, (index, piece) in enumerate(sorted(chosen, key=lambda pair: pair[0])):
            steps[index] = _writing(steps[index], whole, piece.start, total, first=order == 0)
        if chosen:
            left = _copying(join, {piece.value for _, piece in chosen})
            steps = [made for step in steps for made in ((left,) if step is join else (step,)) if made is not None]
    return Flow(tuple(steps), flow.aliases, flow.copied)


def _times_read(flow: Flow) -> Counter[str]:
    return Counter(value for step in (*flow.steps, *flow.aliases.values()) for value in step.inputs)


def _pieces(join: Step) -> tuple[int, list[_Piece]]:
    """Elements of a pixel of the joint value, and its pieces."""
    pieces, start = [], 0
    for index, length in join.attributes["joins"]:
        pieces.append(_Piece(join.inputs[index], start))
        start += length
    return join.attributes.get("aligns", start), pieces


def _padding(join: Step, pad: Step, length: int) -> Step:
    """A Concat of rows of so many elements that writes those of the step which pads them."""
    columns = pad.attributes["aligns"]
    arguments: list[Any] = list(join.attributes["arguments"])
    (_, units), (_, row_units) = arguments[1:3]
    padded = row_units * columns // length  # units divide 16 bytes, and so do these rows
    units, threads = units // row_units * padded, join.attributes["block"][0]
    arguments[1:3] = ["int", units], ["int", padded]
    attributes = {**join.attributes, "arguments": arguments, "aligns": columns,
                  "grid": [-(-units // threads), 1, 1]}  # fmt: skip
    return replace(join, outputs=pad.outputs, attributes=attributes)


def _writing(step: Step, whole: str, start: int, total: int, *, first: bool) -> Step:
    """A step that writes its result into the joint value."""
    arguments: list[Any] = list(step.attributes["arguments"])
    place = step.attributes["place"]
    arguments[place : place + 2] = ["int", total], ["int", start]
    inputs = step.inputs if first else (*step.inputs, whole)
    return replace(step, inputs=inputs, outputs=(whole,), attributes={**step.attributes, "arguments": arguments})


def _copying(join: Step, written: Collection[str]) -> Step | None:
    """The step that copies the other pieces behind those that are written; None where there are none."""
    left = tuple(value for value in join.inputs if value not in written)
    if not left and "aligns" not in join.attributes:
        return None
    arguments = [
        [kind, left.index(join.inputs[number])] if kind == "in" and join.inputs[number] in left
        else ["null", 0] if kind == "in" else [kind, number]
        for kind, number in join.attributes["arguments"]
    ]  # fmt: skip
    lengths = Counter[bool]()
    for index, length in join.attributes["joins"]:
        lengths[join.inputs[index] in left] += length
    moved = join.moved_bytes * lengths[True] // lengths.total()
    return replace(join, inputs=(*left, join.outputs[0]), attributes={**join.attributes, "arguments": arguments},
                   moved_bytes=moved)  # fmt: skip
