"""cuBLASLt: linear layers, 1x1 convolutions of NHWC images, and products of two activations.

One residual of the output's shape, then one activation, are part of the call; what is left follows as a pointwise
step. cuBLASLt's GELU is the tanh approximation. It serves ``gelu_tanh``, and in 16 bits also the exact ``gelu``, under
the parameter ``gelu: tanh`` beside choices that stay exact: the two differ by at most 4.8e-4, half a step of float16
between 1 and 2. Which of the library's algorithms runs is the parameter ``rank``, a place in the library's own order;
the race times several. Rows that are no multiple of 16 bytes are also padded by a step in front, under the parameter
``aligned``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Conv, MatMul, Pointwise, epilogue_of
from tamis.compiler.tactics.aligned_rows import aligned_columns, aligned_weight, aligning_parameters, aligning_step
from tamis.compiler.tactics.base import Choice, Layer, Lowered, flops_of, moved_bytes_of, uniform_format
from tamis.compiler.tactics.precision import runs_in, to_precision
from tamis.compiler.tactics.product import refuses_product, rows_of
from tamis.compiler.tactics.rest import rest_parameters, result_of, with_rest
from tamis.engine.plan import DeviceInfo, Format, Step
from tamis.formats.dtype import DType

RANKS = 8
# Of the form that turns 16-bit inputs into float32 outputs, which saves a conversion behind the last layer.
WIDENING_RANKS = 2
_ACTIVATIONS = ("relu", "gelu_tanh")
# The parameter of choices that run an exact GELU as the library's.
_APPROXIMATE = {"gelu": "tanh"}


class CublasLt:
    """Dense matrix products by cuBLASLt."""

    name = "cublaslt"
    sparse = False

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Anything that is not one matrix product, or a device without the library."""
        if device.kind != "cuda":
            return "runs on CUDA devices only"
        if "cublaslt" not in device.libraries:
            return "cuBLASLt is not installed"
        if isinstance(layer.op, MatMul):
            return _refuses_batched(layer)
        return refuses_product(layer)

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """Each allowed precision, each rank.

        With 16-bit inputs also float32 outputs where nothing else reads them, and an exact GELU as the tanh form.
        """
        channels_last = isinstance(layer.op, Conv)
        residual, _, tail = _split(layer, {})
        rest = rest_parameters(layer, tail, device)
        _, activation, short_tail = _split(layer, _APPROXIMATE)
        approximate = _APPROXIMATE | rest_parameters(layer, short_tail, device)
        for precision in config.precisions:
            if not runs_in(precision, device):
                continue
            storage = precision.storage
            inputs = tuple(uniform_format(layer.types[v], storage, channels_last) for v in layer.values)
            outputs = tuple(uniform_format(layer.types[v], storage, channels_last) for v in layer.node.outputs)
            aligned = aligning_parameters(layer, tail, storage, device)
            ways = (aligned, {}) if aligned else ({},)
            for way, rank in product(ways, range(min(config.algorithms, RANKS))):
                yield Choice(self.name, precision, inputs, outputs, parameters={"rank": rank} | rest | way)
            if storage is not DType.FLOAT32 and activation is not None and activation.kind == "gelu":
                for rank in range(min(config.algorithms, RANKS)):
                    yield Choice(self.name, precision, inputs, outputs, parameters={"rank": rank} | approximate)
            if storage is not DType.FLOAT32 and residual is None and not tail:
                wide = tuple(Format(DType.FLOAT32, f.layout) for f in outputs)
                for rank in range(WIDENING_RANKS):
                    yield Choice(self.name, precision, inputs, wide, parameters={"rank": rank})

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """One call, and a pointwise step for what it cannot fuse."""
        node = layer.node
        residual, activation, tail = _split(layer, choice.parameters)
        kind = activation.kind if activation else "none"
        attributes = {
            "activation": "gelu_tanh" if kind == "gelu" else kind, "residual": residual is not None,
            "rank": choice.parameters["rank"],
        }  # fmt: skip
        constants: dict[str, np.ndarray] = {}
        front = None
        if isinstance(layer.op, MatMul):
            kernel, attributes, inputs = "cublaslt.batched", attributes | batched_shape(layer), node.inputs[:2]
        else:
            n, k = layer.type(1).shape[0], prod(layer.type(1).shape[1:])
            kernel, inputs = "cublaslt.matmul", node.inputs[:1]
            weight = layer.constants[node.inputs[1]].reshape(n, k)
            if choice.parameters.get("aligned"):
                aligned, front = aligning_step(layer, choice)
                inputs, k = (aligned,), aligned_columns(layer, choice.precision.storage)
                weight = aligned_weight(weight, k)
            attributes |= {"rows": rows_of(layer), "n": n, "k": k}
            constants[f"{layer.name}.weight"] = np.ascontiguousarray(to_precision(weight, choice.precision.storage))
            if layer.op.bias:  # in the output's type, as the library wants it
                bias = layer.constants[node.inputs[2]].reshape(n)
                constants[f"{layer.name}.bias"] = to_precision(bias, choice.outputs[0].dtype)
        if residual is not None:
            inputs = (*inputs, node.inputs[residual.operand])  # type: ignore[index]
        step = Step(
            layer.name, kernel, inputs, (result_of(layer, tail),), tuple(constants), attributes, (layer.name,),
            choice.precision, flops=flops_of(layer), moved_bytes=moved_bytes_of(layer, choice),
        )  # fmt: skip
        lowered = with_rest(Lowered((step,), constants), layer, tail, choice)
        return front.before(lowered) if front else lowered


def _split(
    layer: Layer, parameters: Mapping[str, Any]
) -> tuple[Pointwise | None, Pointwise | None, tuple[Pointwise, ...]]:
    """(residual, activation, rest) of the epilogue under the parameters of a choice."""
    approximate = ("gelu",) if parameters.get("gelu") == "tanh" else ()
    return split_epilogue(layer, (*_ACTIVATIONS, *approximate))


def split_epilogue(
    layer: Layer, activations: Collection[str]
) -> tuple[Pointwise | None, Pointwise | None, tuple[Pointwise, ...]]:
    """The longest prefix of the epilogue that is ``activation(product + residual)``: (residual, activation, rest).

    A residual is a run-time value of the output's shape that is added; ``activations`` are the kinds allowed.
    """
    program = epilogue_of(layer.op)
    residual: Pointwise | None = None
    if program and program[0].kind == "add" and program[0].operand is not None:
        operand = layer.node.inputs[program[0].operand]
        same = layer.types[operand] == layer.types[layer.node.output]
        if same and operand not in layer.constants:
            residual, program = program[0], program[1:]
    if program and program[0].operand is None and program[0].kind in activations:
        return residual, program[0], program[1:]
    return residual, None, program


def _refuses_batched(layer: Layer) -> str | None:
    left, right = layer.type(0), layer.type(1)
    if layer.constant(0) is not None or layer.constant(1) is not None:
        return "an operand is constant"
    if (left.dtype, right.dtype) != (DType.FLOAT32, DType.FLOAT32):
        return f"the operands are {left.dtype} and {right.dtype}, not floating point"
    if min(len(left.shape), len(right.shape)) < 2:
        return "an operand is a vector"
    batches = {prod(left.shape[:-2]), prod(right.shape[:-2])} - {1}
    if len(batches) > 1 or (batches and batches != {prod(layer.types[layer.node.output].shape[:-2])}):
        return f"the batches {left.shape[:-2]} and {right.shape[:-2]} are broadcast against each other"
    return None


def batched_shape(layer: Layer) -> dict[str, int]:
    """The attributes of a ``cublaslt.batched`` step; one right operand for all is one large product."""
    left, right = layer.type(0).shape, layer.type(1).shape
    rows, k, n = left[-2], left[-1], right[-1]
    lefts, rights = prod(left[:-2]), prod(right[:-2])
    if rights == 1:
        return {"batch": 1, "rows": rows * lefts, "n": n, "k": k, "left_stride": 0, "right_stride": 0}
    left_stride = rows * k if lefts > 1 else 0
    return {"batch": rights, "rows": rows, "n": n, "k": k, "left_stride": left_stride, "right_stride": k * n}
