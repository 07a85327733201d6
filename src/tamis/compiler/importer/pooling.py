"""Pooling, windowed and global."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.convolution import auto_pad, per_axis, window_pads
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import Pool, Reduce
from tamis.errors import InvalidModel, UnsupportedModel


def _window(net: Network, call: Call) -> Pool:
    """The geometry of a pooling node, as a max pooling."""
    sizes = net.shape(call.input(0))[2:]
    rank = len(sizes)
    kernel = call.integers("kernel_shape")
    if kernel is None or len(kernel) != rank:
        raise InvalidModel(f"kernel_shape {kernel} does not fit the {rank} spatial axes of its input")
    strides, dilations = per_axis(call, "strides", rank, 1), per_axis(call, "dilations", rank, 1)
    pads = window_pads(call, sizes, kernel, strides, dilations)
    ceil = bool(call.integer("ceil_mode", 0)) and auto_pad(call) not in ("SAME_UPPER", "SAME_LOWER")
    return Pool("max", kernel, strides, pads, dilations, ceil)


def max_pool(net: Network, call: Call) -> str:
    """Max pooling; the indices output is refused."""
    if call.wants(1):
        raise UnsupportedModel("MaxPool with its indices output")
    return net.add(_window(net, call), call.input(0))


def _average(window: Pool, count_pads: bool) -> Pool:
    return Pool("average", window.kernel, window.strides, window.pads, window.dilations, window.ceil, count_pads)


def average_pool(net: Network, call: Call) -> str:
    """Average pooling, the padding counted or not."""
    count_pads = bool(call.integer("count_include_pad", 0))
    return net.add(_average(_window(net, call), count_pads), call.input(0))


def _root_of_sum(net: Network, x: str, power: int, total: str) -> str:
    return total if power == 1 else net.pointwise("pow", total, net.scalar(1 / power, x))


def _power(net: Network, x: str, power: int) -> str:
    magnitude = net.pointwise("abs", x)
    return magnitude if power == 1 else net.pointwise("pow", magnitude, net.scalar(power, x))


def lp_pool(net: Network, call: Call) -> str:
    """Lp pooling: the root of a sum of powers, the sum being an average times its count."""
    x, power, window = call.input(0), call.integer("p", 2), _window(net, call)
    if window.ceil:
        raise UnsupportedModel("LpPool with ceil_mode")
    average = net.add(_average(window, True), _power(net, x, power))
    total = net.pointwise("mul", average, net.scalar(prod(window.kernel), x))
    return _root_of_sum(net, x, power, total)


def _spatial_axes(net: Network, x: str) -> tuple[int, ...]:
    if net.rank(x) < 3:
        raise InvalidModel(f"x {net.types[x]} has no spatial axes")
    return tuple(range(2, net.rank(x)))


def global_average_pool(net: Network, call: Call) -> str:
    """The mean over all spatial axes."""
    x = call.input(0)
    return net.add(Reduce("mean", _spatial_axes(net, x), True), x)


def global_max_pool(net: Network, call: Call) -> str:
    """The maximum over all spatial axes."""
    x = call.input(0)
    return net.add(Reduce("max", _spatial_axes(net, x), True), x)


def global_lp_pool(net: Network, call: Call) -> str:
    """The Lp norm over all spatial axes."""
    x, power = call.input(0), call.integer("p", 2)
    axes = _spatial_axes(net, x)
    if power == 2:
        return net.add(Reduce("l2", axes, True), x)
    return _root_of_sum(net, x, power, net.add(Reduce("sum", axes, True), _power(net, x, power)))


POOLING: Mapping[str, Convert] = MappingProxyType(
    {
        "AveragePool": average_pool,
        "GlobalAveragePool": global_average_pool,
        "GlobalLpPool": global_lp_pool,
        "GlobalMaxPool": global_max_pool,
        "LpPool": lp_pool,
        "MaxPool": max_pool,
    }
)
