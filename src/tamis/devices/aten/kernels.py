"""The kernels ``aten.*``: every operator of the graph by PyTorch's own functions.

The name of a kernel is the operator's class name in snake case, its attributes are the operator's fields
as JSON and ``arguments`` (see ``binding.binding_of``). ``aten.convert`` brings a value to another
format. The attribute ``strided`` lets a step give out a view of any strides; without it results are dense.
``view`` makes a step give out a view where that is dense, instead of writing into given memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tamis.devices.aten.binding import Binding, Prepared, binding_of, make_runner
from tamis.devices.aten.convolution import conv, conv_transpose
from tamis.devices.aten.index import (
    gather,
    gather_elements,
    gather_nd,
    scatter_elements,
    scatter_nd,
    where,
)
from tamis.devices.aten.matrix import attention, einsum, linear, mat_mul
from tamis.devices.aten.movement import (
    concat,
    convert,
    depth_to_space,
    expand,
    pad,
    reshape,
    slice_,
    space_to_depth,
    split,
    tile,
    transpose,
)
from tamis.devices.aten.normalization import (
    batch_norm,
    group_norm,
    layer_norm,
    local_response_norm,
    softmax,
)
from tamis.devices.aten.pointwise import elementwise
from tamis.devices.aten.pool import pool
from tamis.devices.aten.reduction import arg_reduce, cum_sum, reduce, reduces_into, top_k, triangle
from tamis.devices.aten.resize import resize
from tamis.devices.aten.types import cast, dequantize, quantize
from tamis.devices.base import BoundShape, Runner, Tensor
from tamis.engine.plan import Step
from tamis.errors import DeviceError, TamisError

PREFIX = "aten."


def _never(attributes: Mapping[str, Any]) -> bool:
    return False


def _always(attributes: Mapping[str, Any]) -> bool:
    return True


def _unless_view(attributes: Mapping[str, Any]) -> bool:
    return not attributes.get("strided") and not attributes.get("view")


@dataclass(frozen=True)
class Kernel:
    """How an operator is prepared; whether its result may share memory with an input; whether it can write
    into given memory without a copy (it depends on the attributes)."""

    prepare: Callable[[Binding], Prepared]
    alias: bool = False
    out: Callable[[Mapping[str, Any]], bool] = _never


KERNELS: Mapping[str, Kernel] = {
    "arg_reduce": Kernel(arg_reduce),
    "attention": Kernel(attention),
    "batch_norm": Kernel(batch_norm),
    "cast": Kernel(cast, alias=True, out=lambda a: a["to"] != "float8_e4m3"),
    "concat": Kernel(concat, out=_always),
    "conv": Kernel(conv),
    "conv_transpose": Kernel(conv_transpose),
    "convert": Kernel(convert, alias=True, out=_always),
    "cum_sum": Kernel(cum_sum, out=lambda a: not a.get("exclusive") and not a.get("reverse")),
    "depth_to_space": Kernel(depth_to_space, alias=True),
    "dequantize": Kernel(dequantize),
    "einsum": Kernel(einsum, alias=True),
    "elementwise": Kernel(elementwise, out=_always),
    "expand": Kernel(expand, alias=True),
    "gather": Kernel(gather, alias=True),
    "gather_elements": Kernel(gather_elements),
    "gather_nd": Kernel(gather_nd),
    "group_norm": Kernel(group_norm),
    "layer_norm": Kernel(layer_norm),
    "linear": Kernel(linear, out=_always),
    "local_response_norm": Kernel(local_response_norm),
    "mat_mul": Kernel(mat_mul, out=_always),
    "pad": Kernel(pad),
    "pool": Kernel(pool),
    "quantize": Kernel(quantize),
    "reduce": Kernel(reduce, out=lambda a: reduces_into(a["kind"]) and bool(a["axes"])),
    "reshape": Kernel(reshape, alias=True),
    "resize": Kernel(resize),
    "scatter_elements": Kernel(scatter_elements),
    "scatter_nd": Kernel(scatter_nd),
    "slice": Kernel(slice_, alias=True),
    "softmax": Kernel(softmax, out=_always),
    "space_to_depth": Kernel(space_to_depth, alias=True),
    "split": Kernel(split, alias=True),
    "tile": Kernel(tile),
    "top_k": Kernel(top_k),
    "transpose": Kernel(transpose, alias=True, out=_unless_view),
    "triangle": Kernel(triangle, out=_always),
    "where": Kernel(where, out=_always),
}


def _kernel(name: str) -> Kernel:
    kernel = KERNELS.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    if kernel is None:
        raise DeviceError(f"kernel {name} is unknown", remedy="build the engine again")
    return kernel


def supports_out(kernel_name: str, attributes: Mapping[str, Any]) -> bool:
    """Whether an ``aten`` step can write into given memory at no extra cost."""
    return _kernel(kernel_name).out(attributes)


def may_alias(kernel_name: str) -> bool:
    """Whether the result of an ``aten`` step may share memory with its first input."""
    return _kernel(kernel_name).alias


def prepare(
    step: Step, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]
) -> Prepared:
    """The function behind a step, before it is tied to slots. Errors name the layer."""
    try:
        return _kernel(step.kernel).prepare(binding_of(step, constants, inputs, outputs))
    except TamisError as error:
        if error.layer is not None:
            raise
        raise type(error)(error.cause, layer=step.name, remedy=error.remedy) from error


def bind(
    step: Step, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]
) -> Runner:
    """A runner for one ``aten.*`` step."""
    return make_runner(prepare(step, constants, inputs, outputs), outputs, bool(step.attributes.get("strided", False)))
