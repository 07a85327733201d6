"""Attention of opset 23: the plain case as one operator, everything else by ONNX's definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import Attention, Reshape, Transpose
from tamis.errors import InvalidModel

# Other attributes (softcap, sliding windows of later opsets, ...) make it another operator.
PLAIN_ATTRIBUTES = (
    "is_causal",
    "kv_num_heads",
    "q_num_heads",
    "qk_matmul_output_mode",
    "scale",
    "softmax_precision",
)


def attention(net: Network, call: Call) -> str | None:
    """Attention with as many key as query heads, without a cache; masks must be constants."""
    q, k, v = (call.input(index) for index in range(3))
    plain = all(name in PLAIN_ATTRIBUTES or not call.attributes[name] for name in call.attributes)
    if not plain or any(call.optional(i) for i in (4, 5, 6)) or any(call.wants(i) for i in (1, 2, 3)):
        return None
    heads = call.integer("q_num_heads", 0)
    if net.rank(q) == 3:
        if heads < 1 or net.shape(q)[2] % heads:
            raise InvalidModel(f"{net.types[q]} cannot be cut into {heads} heads")
        if call.integer("kv_num_heads", heads) != heads:
            return None
        q4, k4, v4 = (_split_heads(net, value, heads) for value in (q, k, v))
    else:
        q4, k4, v4 = q, k, v
    if {net.rank(q4), net.rank(k4), net.rank(v4)} != {4} or net.shape(q4)[1] != net.shape(k4)[1]:
        return None
    given = call.optional(3)
    mask = _constant_mask(net, call, given, (net.shape(q4)[2], net.shape(k4)[2]))
    if mask is None:
        return None
    scale = call.number("scale", 0.0) or 1 / math.sqrt(net.shape(q4)[3])
    if mask.size:
        result = net.add(Attention(scale, True), q4, k4, v4, net.constant(mask, f"{call.name}.mask"))
    else:
        result = net.add(Attention(scale), q4, k4, v4)
    if net.rank(q) == 4:
        return result
    batch, _, rows, size = net.shape(result)
    return net.add(Reshape((batch, rows, heads * size)), net.add(Transpose((0, 2, 1, 3)), result))


def _split_heads(net: Network, value: str, heads: int) -> str:
    batch, rows, size = net.shape(value)
    if size % heads:
        raise InvalidModel(f"{net.types[value]} cannot be cut into {heads} heads")
    return net.add(Transpose((0, 2, 1, 3)), net.add(Reshape((batch, rows, heads, size // heads)), value))


def _constant_mask(net: Network, call: Call, given: str | None, size: tuple[int, int]) -> np.ndarray | None:
    """The mask, empty for none; None where it is not known, or where a row would have no key at all
    (which ONNX defines as zeros, and a softmax as NaN)."""
    mask: np.ndarray = np.ones(0, bool)
    if given is not None:
        known = net.known(given)
        if known is None or known.shape[-1:] != size[1:]:
            return None
        mask = known
    if call.integer("is_causal", 0):
        causal = np.tril(np.ones(size, bool))
        if mask.size == 0:
            mask = causal
        elif mask.dtype == bool:
            mask = mask & causal
        else:
            mask = np.where(causal, mask, -np.inf).astype(mask.dtype)
    allowed = mask if mask.dtype == bool else mask > -np.inf
    if mask.size > 0 and not allowed.any(axis=-1).all():
        return None
    return mask


ATTENTION: Mapping[str, Convert] = MappingProxyType({"Attention": attention})
