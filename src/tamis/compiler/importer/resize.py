"""Resize (opsets 10 to 19) and Upsample (opset 7 to 9)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import Resize
from tamis.errors import InvalidModel, UnsupportedModel

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
POLICIES = ("stretch", "not_larger", "not_smaller")


def upsample(net: Network, call: Call) -> str:
    """Upsample, which places samples as the first Resize did."""
    x = call.input(0)
    if call.opset >= 9:
        scales = net.constant_of(call.input(1), "scales").astype(np.float64).tolist()
    else:
        scales = [float(scale) for scale in call.required("scales")]
    return _resample(net, x, scales, call.text("mode", "nearest"))


def resize(net: Network, call: Call) -> str:
    """Resize by constant scales or sizes."""
    x = call.input(0)
    if call.opset < 11:
        scales = net.constant_of(call.input(1), "scales").astype(np.float64).tolist()
        return _resample(net, x, scales, call.text("mode", "nearest"))
    coordinates = call.text("coordinate_transformation_mode", "half_pixel")
    if coordinates not in COORDINATES:
        raise UnsupportedModel(f"Resize with coordinate_transformation_mode '{coordinates}'")
    scales, sizes = _wanted(net, call)
    if call.integer("antialias", 0) and any(scale < 1 for scale in scales):
        raise UnsupportedModel("Resize with antialias while shrinking")
    nearest = call.text("nearest_mode", "round_prefer_floor")
    return _resample(
        net,
        x,
        scales,
        call.text("mode", "nearest"),
        coordinates=coordinates,
        nearest=nearest,
        sizes=sizes,
        cubic=call.number("cubic_coeff_a", -0.75),
        exclude=bool(call.integer("exclude_outside", 0)),
    )


def _wanted(net: Network, call: Call) -> tuple[list[float], list[int] | None]:
    """Scales of all axes and, where sizes were given, the sizes of all axes."""
    x, shape = call.input(0), net.shape(call.input(0))
    axes = [net.axis(x, axis) for axis in call.integers("axes") or range(len(shape))]
    scales_input, sizes_input = call.optional(2), call.optional(3)
    scales: list[float] = [1.0] * len(shape)
    if sizes_input is not None and net.types[sizes_input].elements:
        given = net.integers_of(sizes_input, "sizes")
        _same_length(given, axes, "sizes")
        sizes = list(shape)
        for axis, size in zip(axes, given, strict=True):
            sizes[axis] = size
        return _keep_aspect_ratio(call, shape, sizes, axes)
    if scales_input is None or not net.types[scales_input].elements:
        raise InvalidModel("Resize has neither scales nor sizes")
    factors = net.constant_of(scales_input, "scales").astype(np.float64).tolist()
    _same_length(factors, axes, "scales")
    for axis, factor in zip(axes, factors, strict=True):
        scales[axis] = factor
    return scales, None


def _same_length(given: Any, axes: list[int], what: str) -> None:
    if len(given) != len(axes):
        raise InvalidModel(f"Resize has {len(given)} {what} for {len(axes)} axes")


def _keep_aspect_ratio(
    call: Call, shape: tuple[int, ...], sizes: list[int], axes: list[int]
) -> tuple[list[float], list[int]]:
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    if policy not in POLICIES:
        raise InvalidModel(f"Resize with keep_aspect_ratio_policy '{policy}'")
    scales = [size / old if old else 1.0 for size, old in zip(sizes, shape, strict=True)]
    if policy != "stretch":
        factor = (min if policy == "not_larger" else max)(scales[axis] for axis in axes)
        for axis in axes:
            scales[axis] = factor
            sizes[axis] = int(np.floor(factor * shape[axis] + 0.5))
    return scales, sizes


def _resample(
    net: Network,
    x: str,
    scales: list[float],
    mode: str,
    *,
    coordinates: Any = "asymmetric",
    nearest: Any = "floor",
    sizes: list[int] | None = None,
    cubic: float = -0.75,
    exclude: bool = False,
) -> str:
    shape = net.shape(x)
    kinds: dict[str, Any] = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "cubic": "cubic"}
    if mode not in kinds or nearest not in NEAREST:
        raise UnsupportedModel(f"Resize with mode '{mode}' and nearest_mode '{nearest}'")
    if len(scales) != len(shape) or min(scales, default=1.0) <= 0:
        raise InvalidModel(f"scales {scales} do not fit {net.types[x]}")
    if sizes is None:
        # Scales are stored in float32: 1.3333334 * 3 must still be 4, and 1.9999999 is 2.
        sizes = [int(np.floor(np.float32(size) * np.float32(scale))) for size, scale in zip(shape, scales, strict=True)]
    if tuple(sizes) == shape and all(scale == 1 for scale in scales):
        return x
    op = Resize(tuple(sizes), tuple(scales), kinds[mode], coordinates, nearest, cubic, exclude)
    return net.add(op, x)


RESIZE: Mapping[str, Convert] = MappingProxyType({"Resize": resize, "Upsample": upsample})
