"""Our own CUDA kernels for what surrounds the matrix products: one kernel, one walk through memory, for a whole layer.

Pointwise programs, layer normalisation, softmax, pooling, concatenation and splitting. Lowering compiles the kernel, so
a build needs NVRTC or nvcc but no GPU; the cubin is a constant of the engine. A build from a recorded timing cache
gives equal bytes with an equal compiler, whose name the step keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.ops import BOOLEAN_KINDS, Concat, Elementwise, LayerNorm, Pool, Program, Reduce, Softmax, Split
from tamis.compiler.tactics.base import Choice, Layer, Lowered, moved_bytes_of, uniform_format
from tamis.compiler.tactics.cuda_steps import OLDEST_GENERATION, generation_of, kernel_step, program_step
from tamis.compiler.tactics.precision import to_precision
from tamis.engine.plan import DeviceInfo
from tamis.formats.dtype import DType
from tamis.kernels.cuda.compile import NO_COMPILER, compiler_name
from tamis.kernels.cuda.movement import MOST_PIECES, concat
from tamis.kernels.cuda.pointwise import MOST_OPERANDS, physical_order
from tamis.kernels.cuda.pool import pool, reduce_pixels
from tamis.kernels.cuda.rows import MANY_ROWS, NOTHING, layer_norm, softmax
from tamis.kernels.cuda.specification import ELEMENTS, MOST_ELEMENTS, Argument, Kernel

_CHANNELS_LAST_ONLY = (Pool, Reduce)
_EITHER_LAYOUT = (Elementwise, Concat, Split)
_ROWS_EACH = 4  # of a normalisation, where there are many
_REDUCTIONS = ("mean", "sum", "max")


class TamisCuda:
    """Fused memory-bound kernels."""

    name = "tamis.cuda"
    sparse = False

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Other operators, element types that are not floating point, and machines without a CUDA compiler."""
        if device.kind != "cuda":
            return "runs on CUDA devices only"
        check = _CHECKS.get(type(layer.op))
        if check is None:
            return f"there is no kernel for {type(layer.op).__name__}"
        types = [layer.types[value] for value in (*layer.node.inputs, *layer.node.outputs) if value]
        reason = check(layer) or _refuses_types(types)
        if reason is not None:
            return reason
        if generation_of(device) < OLDEST_GENERATION:
            return f"needs compute capability 7.5 or newer; this is {device.architecture}"
        return NO_COMPILER if compiler_name() is None else None

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """Each type of memory; pooling with channels last, what knows no rows on images in both layouts."""
        values = (*layer.values, *layer.node.outputs)
        images = any(len(layer.types[value].shape) == 4 for value in values)
        layouts = (False, True) if isinstance(layer.op, _EITHER_LAYOUT) and images else (False,)
        if isinstance(layer.op, _CHANNELS_LAST_ONLY):
            layouts = (True,)
        for precision in config.precisions:
            if precision not in ELEMENTS or (precision == DType.BFLOAT16 and generation_of(device) < 80):
                continue
            for last in layouts:
                inputs = tuple(uniform_format(layer.types[v], precision, last) for v in layer.values)
                outputs = tuple(uniform_format(layer.types[v], precision, last) for v in layer.node.outputs)
                for way in _ways(layer):
                    parameters = {"architecture": device.architecture} | way
                    yield Choice(self.name, precision, inputs, outputs, parameters=parameters)

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """One step, its cubin compiled. ``MissingLibrary`` without a compiler."""
        return _LOWERINGS[type(layer.op)](layer, choice)


def _ways(layer: Layer) -> tuple[dict[str, int], ...]:
    """Parameters by which choices of equal formats differ."""
    if not isinstance(layer.op, LayerNorm):
        return ({},)
    shape = layer.type(0).shape
    several = prod(shape[: layer.op.axis]) >= MANY_ROWS
    return ({}, {"rows_each": _ROWS_EACH}) if several else ({},)


def _refuses_types(types: list[TensorType]) -> str | None:
    for type_ in types:
        if type_.dtype != DType.FLOAT32:
            return f"{type_.dtype} values; the kernels are for floating point"
        if not 0 < type_.elements <= MOST_ELEMENTS:
            return f"{type_.elements} elements; the kernels are for 1 to {MOST_ELEMENTS}"
    return None


def _refuses_program(layer: Layer) -> str | None:
    program: Program = layer.op.program
    if any(step.kind in BOOLEAN_KINDS for step in program):
        return "the program has boolean steps"
    read = {layer.node.inputs[0], *(layer.node.inputs[s.operand] for s in program if s.operand is not None)}
    if len(read) > MOST_OPERANDS:
        return f"{len(read)} operands; the kernel takes {MOST_OPERANDS}"
    return None


def _refuses_norm(layer: Layer) -> str | None:
    op: LayerNorm = layer.op
    inputs = layer.node.inputs
    for name in inputs[1 : 1 + op.scale + op.bias]:
        if name not in layer.constants:
            return "the scale or the bias is computed at run time"
        shape, rows = layer.constants[name].shape, layer.type(0).shape[op.axis :]
        if len(shape) > len(rows) and prod(shape[: len(shape) - len(rows)]) != 1:
            return f"a scale or bias of shape {list(shape)} differs from row to row"
    if inputs[0] in layer.constants:
        return "the values are constants"
    if op.residual and (inputs[-1] in layer.constants or layer.type(-1).shape != layer.type(0).shape):
        return "the residual is a constant or is repeated"
    return None


def _refuses_softmax(layer: Layer) -> str | None:
    last = len(layer.type(0).shape) - 1
    return None if layer.op.axis in (-1, last) else "softmax along an axis that is not the last"


def _refuses_pool(layer: Layer) -> str | None:
    rank = len(layer.op.kernel)
    return None if rank == 2 else f"{rank}-D pooling; only 2-D is offered"


def _refuses_reduction(layer: Layer) -> str | None:
    op: Reduce = layer.op
    if op.kind not in _REDUCTIONS:
        return f"there is no kernel for the reduction {op.kind}"
    shape = layer.type(0).shape
    return None if len(shape) == 4 and op.axes == (2, 3) else "reduces something else than the pixels of images"


def _refuses_pieces(layer: Layer) -> str | None:
    node = layer.node
    if all(value in layer.constants for value in node.inputs):
        return "all pieces are constants"
    pieces = len(node.inputs if isinstance(layer.op, Concat) else node.outputs)
    return None if 2 <= pieces <= MOST_PIECES else f"{pieces} pieces; the kernel takes 2 to {MOST_PIECES}"


def _single(layer: Layer, choice: Choice, kernel: Kernel, constants: Mapping[str, np.ndarray]) -> Lowered:
    """A layer as one step that reads its run-time values in order."""
    step, packed = kernel_step(
        kernel, choice, name=layer.name, layers=(layer.name,), inputs=layer.values, outputs=layer.node.outputs,
        constants=constants, moved_bytes=moved_bytes_of(layer, choice),
    )  # fmt: skip
    return Lowered((step,), packed)


def _lower_program(layer: Layer, choice: Choice) -> Lowered:
    step, constants = program_step(layer, layer.op.program, layer.node.inputs[0], choice, layer.name)
    return Lowered((step,), constants)


def _lower_norm(layer: Layer, choice: Choice) -> Lowered:
    op: LayerNorm = layer.op
    node, shape = layer.node, layer.type(0).shape
    columns = prod(shape[op.axis :])
    constants: dict[str, np.ndarray] = {}
    for kind, name in zip(("scale",) * op.scale + ("bias",) * op.bias, node.inputs[1:], strict=False):
        array = layer.constants[name].astype(np.float32)
        row = np.broadcast_to(array.reshape(array.shape[max(array.ndim + op.axis, 0) :]), shape[op.axis :])
        constants[f"{name}/{kind}"] = np.ascontiguousarray(row).reshape(-1)
    names = tuple(constants)
    arguments = {name.rpartition("/")[2]: Argument("const", names.index(name)) for name in names}
    kernel = layer_norm(
        prod(shape) // columns, columns, choice.precision, op.epsilon, rms=op.rms,
        residual=Argument("in", layer.values.index(node.inputs[-1])) if op.residual else NOTHING,
        scale=arguments.get("scale", NOTHING),
        bias=arguments.get("bias", NOTHING),
        total=Argument("out", 1) if len(node.outputs) > 1 else NOTHING,
        rows_each=choice.parameters.get("rows_each", 1),
    )  # fmt: skip
    return _single(layer, choice, kernel, constants)


def _lower_softmax(layer: Layer, choice: Choice) -> Lowered:
    type_ = layer.type(0)
    columns = type_.shape[-1]
    return _single(layer, choice, softmax(type_.elements // columns, columns, choice.precision, layer.op.log), {})


def _lower_pool(layer: Layer, choice: Choice) -> Lowered:
    op: Pool = layer.op
    kernel = pool(
        layer.type(0).shape, layer.types[layer.node.output].shape, choice.precision, average=op.kind == "average",
        kernel=op.kernel, strides=op.strides, pads=op.pads, dilations=op.dilations, count_pads=op.count_pads,
    )  # fmt: skip
    return _single(layer, choice, kernel, {})


def _lower_reduction(layer: Layer, choice: Choice) -> Lowered:
    return _single(layer, choice, reduce_pixels(layer.type(0).shape, choice.precision, layer.op.kind), {})


def _lower_concat(layer: Layer, choice: Choice) -> Lowered:
    shapes = [layer.types[value].shape for value in layer.node.inputs]
    last = choice.outputs[0].layout == "channels_last"
    known = [value for value in dict.fromkeys(layer.node.inputs) if value in layer.constants]
    pieces = [
        Argument("const", known.index(value)) if value in known else Argument("in", layer.values.index(value))
        for value in layer.node.inputs
    ]
    constants = {}
    for value in known:
        array = to_precision(layer.constants[value], choice.precision)
        order = physical_order(array.ndim, last)
        constants[f"{layer.name}.{value}"] = np.ascontiguousarray(array.transpose(order))
    kernel = concat(shapes, layer.op.axis, choice.precision, last, Argument("out", 0), pieces)
    lowered = _single(layer, choice, kernel, constants)
    if known or layer.op.axis != (1 if last else len(shapes[0]) - 1):
        return lowered
    # Pixels, or rows, side by side: of each piece its input and its length, for the planner (joints.py).
    joins = [[piece.value, shape[layer.op.axis]] for piece, shape in zip(pieces, shapes, strict=True)]
    (step,) = lowered.steps
    return replace(lowered, steps=(replace(step, attributes={**step.attributes, "joins": joins}),))


def _lower_split(layer: Layer, choice: Choice) -> Lowered:
    shapes = [layer.types[value].shape for value in layer.node.outputs]
    pieces = [Argument("out", index) for index in range(len(shapes))]
    last = choice.inputs[0].layout == "channels_last"
    return _single(layer, choice, concat(shapes, layer.op.axis, choice.precision, last, Argument("in", 0), pieces), {})


_CHECKS: Mapping[type, Callable[[Layer], str | None]] = {
    Elementwise: _refuses_program,
    LayerNorm: _refuses_norm,
    Softmax: _refuses_softmax,
    Pool: _refuses_pool,
    Reduce: _refuses_reduction,
    Concat: _refuses_pieces,
    Split: _refuses_pieces,
}
_LOWERINGS: Mapping[Any, Callable[[Layer, Choice], Lowered]] = {
    Elementwise: _lower_program,
    LayerNorm: _lower_norm,
    Softmax: _lower_softmax,
    Pool: _lower_pool,
    Reduce: _lower_reduction,
    Concat: _lower_concat,
    Split: _lower_split,
}
