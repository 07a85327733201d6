"""Conv, ConvTranspose and the padding rules they share with pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import Conv, ConvTranspose
from tamis.errors import InvalidModel, UnsupportedModel

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def per_axis(call: Call, name: str, rank: int, default: int) -> tuple[int, ...]:
    """An attribute with one entry for each spatial axis."""
    values = call.integers(name) or (default,) * rank
    if len(values) != rank:
        raise InvalidModel(f"{name} {list(values)} must have {rank} entries")
    return values


def auto_pad(call: Call) -> str:
    """The automatic padding mode."""
    mode = call.text("auto_pad", "NOTSET") or "NOTSET"
    if mode not in AUTO_PADS:
        raise InvalidModel(f"auto_pad is '{mode}', which is none of {', '.join(AUTO_PADS)}")
    return mode


def halves(totals: Sequence[int], upper: bool) -> tuple[int, ...]:
    """Total paddings as (begins..., ends...); an odd one goes to the end if ``upper``."""
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (*small, *large) if upper else (*large, *small)


def window_pads(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[int, ...]:
    """Explicit pads of a sliding window over ``sizes``, whatever way the node states them."""
    mode, rank = auto_pad(call), len(sizes)
    if mode == "VALID":
        return (0,) * (2 * rank)
    if mode == "NOTSET":
        pads = call.integers("pads") or (0,) * (2 * rank)
        if len(pads) != 2 * rank:
            raise InvalidModel(f"pads {list(pads)} must have {2 * rank} entries")
        return pads
    totals = [
        max((-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    return halves(totals, mode == "SAME_UPPER")


def _kernel(net: Network, call: Call) -> tuple[str, str, tuple[int, ...]]:
    x, weight = call.input(0), call.input(1)
    if net.rank(x) < 3 or net.rank(weight) != net.rank(x):
        raise InvalidModel(f"x {net.types[x]} and weight {net.types[weight]} must have one rank, at least three")
    if net.rank(x) > 5:
        raise UnsupportedModel(f"a convolution of {net.rank(x) - 2} spatial axes; three is the most")
    kernel = net.shape(weight)[2:]
    declared = call.integers("kernel_shape")
    if declared and declared != kernel:
        raise InvalidModel(f"kernel_shape {list(declared)} contradicts the weight {net.types[weight]}")
    return x, weight, kernel


def conv(net: Network, call: Call) -> str:
    """Convolution of 1, 2 or 3 spatial axes."""
    x, weight, kernel = _kernel(net, call)
    rank, bias = len(kernel), call.optional(2)
    strides, dilations = per_axis(call, "strides", rank, 1), per_axis(call, "dilations", rank, 1)
    pads = window_pads(call, net.shape(x)[2:], kernel, strides, dilations)
    op = Conv(strides, pads, dilations, call.integer("group", 1), bias is not None)
    return net.add(op, x, weight, *([bias] if bias is not None else []))


def conv_transpose(net: Network, call: Call) -> str:
    """Transposed convolution; ``output_shape`` and ``auto_pad`` become explicit pads."""
    x, weight, kernel = _kernel(net, call)
    rank, bias = len(kernel), call.optional(2)
    strides, dilations = per_axis(call, "strides", rank, 1), per_axis(call, "dilations", rank, 1)
    extra = per_axis(call, "output_padding", rank, 0)
    mode, wanted = auto_pad(call), call.integers("output_shape")
    full = [strides[i] * (net.shape(x)[2 + i] - 1) + extra[i] + dilations[i] * (kernel[i] - 1) + 1 for i in range(rank)]
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(size * stride for size, stride in zip(net.shape(x)[2:], strides, strict=True))
    if wanted is not None:
        totals = [size - target for size, target in zip(full, wanted[-rank:], strict=True)]
        # A result larger than the full one grows at its end.
        extra = tuple(e + max(-total, 0) for e, total in zip(extra, totals, strict=True))
        pads = halves([max(total, 0) for total in totals], mode != "SAME_LOWER")
        # ONNX leaves the odd one at the beginning unless SAME_UPPER asks for the end.
        pads = pads if mode != "NOTSET" else halves([max(total, 0) for total in totals], False)
    elif mode == "VALID":
        pads = (0,) * (2 * rank)
    else:
        pads = call.integers("pads") or (0,) * (2 * rank)
    op = ConvTranspose(strides, pads, dilations, extra, call.integer("group", 1), bias is not None)
    return net.add(op, x, weight, *([bias] if bias is not None else []))


CONVOLUTION: Mapping[str, Convert] = MappingProxyType({"Conv": conv, "ConvTranspose": conv_transpose})
