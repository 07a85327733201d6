"""Gathering and scattering."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, cast

import numpy as np

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import (
    Gather,
    GatherElements,
    GatherND,
    Reshape,
    ScatterElements,
    ScatterND,
    Transpose,
)
from tamis.errors import InvalidModel

Reduction = Literal["none", "add", "mul", "max", "min"]


def gather(net: Network, call: Call) -> str:
    """Gather."""
    data = call.input(0)
    return net.add(Gather(net.axis(data, call.integer("axis", 0))), data, call.input(1))


def gather_elements(net: Network, call: Call) -> str:
    """GatherElements."""
    data = call.input(0)
    return net.add(GatherElements(net.axis(data, call.integer("axis", 0))), data, call.input(1))


def gather_nd(net: Network, call: Call) -> str:
    """GatherND."""
    return net.add(GatherND(call.integer("batch_dims", 0)), call.input(0), call.input(1))


def _reduction(call: Call) -> Reduction:
    reduction = call.text("reduction", "none")
    if reduction not in ("none", "add", "mul", "max", "min"):
        raise InvalidModel(f"{call.op_type} with reduction '{reduction}'")
    return cast(Reduction, reduction)


def scatter_elements(net: Network, call: Call) -> str:
    """ScatterElements, and Scatter of opset 9."""
    data = call.input(0)
    op = ScatterElements(net.axis(data, call.integer("axis", 0)), _reduction(call))
    return net.add(op, data, call.input(1), call.input(2))


def scatter_nd(net: Network, call: Call) -> str:
    """ScatterND."""
    return net.add(ScatterND(_reduction(call)), call.input(0), call.input(1), call.input(2))


def compress(net: Network, call: Call) -> str:
    """Compress with a constant condition: a Gather of the chosen indices."""
    x = call.input(0)
    chosen = net.constant(np.flatnonzero(net.constant_of(call.input(1), "the condition")).astype(np.int64))
    if "axis" in call.attributes:
        return net.add(Gather(net.axis(x, call.integer("axis", 0))), x, chosen)
    return net.add(Gather(0), net.add(Reshape((net.types[x].elements,)), x), chosen)


def reverse_sequence(net: Network, call: Call) -> str:
    """ReverseSequence with constant lengths: a GatherND over [batch, time]."""
    x = call.input(0)
    lengths = net.integers_of(call.input(1), "sequence_lens")
    time, batch = call.integer("time_axis", 0), call.integer("batch_axis", 1)
    if {time, batch} != {0, 1}:
        raise InvalidModel("ReverseSequence needs its time and batch axes to be 0 and 1")
    perm = (1, 0, *range(2, net.rank(x)))
    value = net.add(Transpose(perm), x) if batch == 1 else x
    steps = net.shape(value)[1]
    order = [[length - 1 - t if t < length else t for t in range(steps)] for length in lengths]
    value = net.add(GatherND(1), value, net.constant(np.asarray(order, np.int64)[..., None]))
    return net.add(Transpose(perm), value) if batch == 1 else value


INDEXING: Mapping[str, Convert] = MappingProxyType(
    {
        "Compress": compress,
        "Gather": gather,
        "GatherElements": gather_elements,
        "GatherND": gather_nd,
        "ReverseSequence": reverse_sequence,
        "Scatter": scatter_elements,
        "ScatterElements": scatter_elements,
        "ScatterND": scatter_nd,
    }
)
