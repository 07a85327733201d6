"""Operators that reshape, cut, join and repeat."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Literal, cast

import numpy as np

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import (
    Concat,
    DepthToSpace,
    Expand,
    Pad,
    Reshape,
    Slice,
    SpaceToDepth,
    Split,
    Tile,
    Transpose,
)
from tamis.errors import InvalidModel


def reshaped(net: Network, x: str, target: tuple[int, ...]) -> str:
    """``x`` under another shape; nothing at all when it has that shape already."""
    return x if net.shape(x) == target else net.add(Reshape(target), x)


def reshape(net: Network, call: Call) -> str:
    """Reshape: 0 copies a size (unless ``allowzero``), -1 takes the rest."""
    x = call.input(0)
    sizes = list(net.integers_of(call.input(1), "the shape"))
    if not call.integer("allowzero", 0):
        for axis, wanted in enumerate(sizes):
            if wanted == 0:
                if axis >= net.rank(x):
                    raise InvalidModel(f"the shape {sizes} copies axis {axis}, which {net.types[x]} does not have")
                sizes[axis] = net.shape(x)[axis]
    if sizes.count(-1) > 1 or min(sizes, default=0) < -1:
        raise InvalidModel(f"{sizes} is not a shape")
    if -1 in sizes:
        rest = prod(wanted for wanted in sizes if wanted != -1)
        elements = net.types[x].elements
        if rest == 0 or elements % rest:
            raise InvalidModel(f"{net.types[x]} cannot become {sizes}")
        sizes[sizes.index(-1)] = elements // rest
    return reshaped(net, x, tuple(sizes))


def flatten(net: Network, call: Call) -> str:
    """Flatten to two axes."""
    x, axis = call.input(0), call.integer("axis", 1)
    rank = net.rank(x)
    if not -rank <= axis <= rank:
        raise InvalidModel(f"axis {axis} is not within {rank} axes")
    axis = axis + rank if axis < 0 else axis
    return reshaped(net, x, (prod(net.shape(x)[:axis]), prod(net.shape(x)[axis:])))


def _axes(net: Network, call: Call) -> tuple[int, ...] | None:
    """Axes as an attribute, or as an input from opset 13 on."""
    given = call.optional(1)
    return net.integers_of(given, "axes") if given is not None else call.integers("axes")


def squeeze(net: Network, call: Call) -> str:
    """Axes of size 1 go."""
    x, axes = call.input(0), _axes(net, call)
    sizes = net.shape(x)
    gone = [i for i, s in enumerate(sizes) if s == 1] if axes is None else [net.axis(x, axis) for axis in axes]
    if any(sizes[axis] != 1 for axis in gone if sizes):
        raise InvalidModel(f"the axes {gone} of {net.types[x]} are not all of size 1")
    return reshaped(net, x, tuple(s for i, s in enumerate(sizes) if i not in gone))


def unsqueeze(net: Network, call: Call) -> str:
    """Axes of size 1 come."""
    x, axes = call.input(0), _axes(net, call)
    if axes is None:
        raise InvalidModel("Unsqueeze lacks its axes")
    rank = net.rank(x) + len(axes)
    places = {axis % rank for axis in axes if -rank <= axis < rank}
    if len(places) != len(axes):
        raise InvalidModel(f"axes {list(axes)} are not distinct axes within {rank}")
    sizes = iter(net.shape(x))
    return reshaped(net, x, tuple(1 if axis in places else next(sizes) for axis in range(rank)))


def transpose(net: Network, call: Call) -> str:
    """Permutation of the axes; the reverse by default."""
    x = call.input(0)
    perm = call.integers("perm") or tuple(reversed(range(net.rank(x))))
    return x if perm == tuple(range(net.rank(x))) else net.add(Transpose(perm), x)


def concat(net: Network, call: Call) -> str:
    """Concatenation along one axis."""
    inputs = [call.input(index) for index in range(len(call.inputs))]
    axis = net.axis(call.input(0), call.required_integer("axis"))
    return inputs[0] if len(inputs) == 1 else net.add(Concat(axis), *inputs)


def split(net: Network, call: Call) -> tuple[str, ...]:
    """Split by sizes (attribute before opset 13, then input) or into equal parts."""
    x, count = call.input(0), len(call.outputs)
    axis = net.axis(x, call.integer("axis", 0))
    given = call.optional(1)
    sizes = net.integers_of(given, "split") if given is not None else call.integers("split")
    if sizes is None:
        total, parts = net.shape(x)[axis], call.integer("num_outputs", count)
        chunk = -(-total // parts)
        if "num_outputs" not in call.attributes and total % parts:
            raise InvalidModel(f"{net.types[x]} cannot be cut along axis {axis} into {parts} equal parts")
        sizes = tuple(max(min(chunk, total - chunk * part), 0) for part in range(parts))
    if len(sizes) == 1:
        return (x,)
    return net.add_all(Split(axis, tuple(sizes)), x)


def slice_(net: Network, call: Call) -> str:
    """Slice, its bounds as attributes (opset 9) or inputs; stored with clamped bounds."""
    x = call.input(0)
    if call.opset < 10:
        starts, stops = call.required("starts"), call.required("ends")
        axes, steps = call.integers("axes"), None
    else:
        starts, stops = (net.integers_of(call.input(i), name) for i, name in ((1, "starts"), (2, "ends")))
        axes = net.integers_of(call.input(3), "axes") if call.optional(3) is not None else None
        steps = net.integers_of(call.input(4), "steps") if call.optional(4) is not None else None
    axes = tuple(net.axis(x, axis) for axis in (range(len(starts)) if axes is None else axes))
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(stops) == len(axes) == len(steps) or 0 in steps:
        raise InvalidModel("starts, ends, axes and steps do not fit together")
    kept: list[tuple[int, int, int | None, int]] = []
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        begin, end, stride = slice(int(start), int(stop), int(step)).indices(net.shape(x)[axis])
        if (begin, end, stride) != (0, net.shape(x)[axis], 1):
            kept.append((axis, begin, None if end < 0 else end, stride))
    if not kept:
        return x
    return net.add(Slice(*(tuple(column) for column in zip(*sorted(kept), strict=True))), x)


def expand(net: Network, call: Call) -> str:
    """Broadcast; sizes of 1 in the wanted shape keep those of the input."""
    x = call.input(0)
    wanted = net.integers_of(call.input(1), "the shape")
    try:
        target = tuple(int(s) for s in np.broadcast_shapes(net.shape(x), wanted))
    except ValueError:
        raise InvalidModel(f"{net.types[x]} does not broadcast to {list(wanted)}") from None
    return x if target == net.shape(x) else net.add(Expand(target), x)


def tile(net: Network, call: Call) -> str:
    """Repetition along every axis."""
    x, repeats = call.input(0), net.integers_of(call.input(1), "repeats")
    return x if all(count == 1 for count in repeats) else net.add(Tile(repeats), x)


def pad(net: Network, call: Call) -> str:
    """Pad; pads and value are attributes before opset 11, then inputs, with axes from opset 18."""
    x, mode = call.input(0), call.text("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise InvalidModel(f"Pad with mode '{mode}'")
    rank = net.rank(x)
    if call.opset < 11:
        pads, value = call.required("pads"), call.number("value", 0.0)
    else:
        pads = net.integers_of(call.input(1), "pads")
        given = call.optional(2)
        value = float(net.scalar_of(given, "the padding value")) if given is not None else 0.0
        if call.optional(3) is not None:
            axes = [net.axis(x, axis) for axis in net.integers_of(call.input(3), "axes")]
            full = [0] * (2 * rank)
            for index, axis in enumerate(axes):
                full[axis], full[axis + rank] = pads[index], pads[index + len(axes)]
            pads = tuple(full)
    if not any(pads):
        return x
    kind = cast(Literal["constant", "reflect", "edge", "wrap"], mode)
    return net.add(Pad(tuple(int(entry) for entry in pads), kind, value), x)


def center_crop_pad(net: Network, call: Call) -> str:
    """Crop or pad around the centre to a constant shape (opset 18)."""
    x, wanted = call.input(0), net.integers_of(call.input(1), "the shape")
    axes = [net.axis(x, axis) for axis in call.integers("axes") or range(net.rank(x))]
    pads = [0] * (2 * net.rank(x))
    for axis, target in zip(axes, wanted, strict=True):
        total = target - net.shape(x)[axis]
        begin = total // 2 if total >= 0 else -(-total // 2)
        pads[axis], pads[axis + net.rank(x)] = begin, total - begin
    return net.add(Pad(tuple(pads)), x) if any(pads) else x


def depth_to_space(net: Network, call: Call) -> str:
    """DepthToSpace."""
    mode = call.text("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise InvalidModel(f"DepthToSpace with mode '{mode}'")
    return net.add(DepthToSpace(call.required_integer("blocksize"), cast(Literal["DCR", "CRD"], mode)), call.input(0))


def space_to_depth(net: Network, call: Call) -> str:
    """SpaceToDepth; its channel-major order (opset 28) is a permutation."""
    x, block = call.input(0), call.required_integer("blocksize")
    if call.text("mode", "DCR") == "DCR":
        return net.add(SpaceToDepth(block), x)
    n, c, h, w = net.shape(x)
    cut = net.add(Reshape((n, c, h // block, block, w // block, block)), x)
    moved = net.add(Transpose((0, 1, 3, 5, 2, 4)), cut)
    return net.add(Reshape((n, c * block**2, h // block, w // block)), moved)


SHAPE: Mapping[str, Convert] = MappingProxyType(
    {
        "CenterCropPad": center_crop_pad,
        "Concat": concat,
        "DepthToSpace": depth_to_space,
        "Expand": expand,
        "Flatten": flatten,
        "Pad": pad,
        "Reshape": reshape,
        "Slice": slice_,
        "SpaceToDepth": space_to_depth,
        "Split": split,
        "Squeeze": squeeze,
        "Tile": tile,
        "Transpose": transpose,
        "Unsqueeze": unsqueeze,
    }
)
