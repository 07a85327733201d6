"""cuDNN: dense 2-D convolutions of NHWC images with constant weights.

``cudnn.conv`` is one fused call; which of cuDNN's plans runs is the parameter ``rank``. How much is fused is the
parameter ``fuse``:

* ``all``: bias, one residual, and activations, as far as cuDNN has them. Anything but a last ``relu`` is compiled at
  run time, by other engines than the ready ones.
* ``sum``: bias and a leading residual on the ready engines; activations follow in a step of their own.
* ``none``: the bare convolution, for grouped layers, whose special engines fuse nothing.

``space_to_depth`` and ``pad_channels`` let a step in front rearrange images of few channels, such as the three of the
first layer. ``cudnn.torch_conv`` (tactic ``cudnn.torch``) needs PyTorch only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.ops import Conv, ConvTranspose, Pointwise, Program, epilogue_of
from tamis.compiler.tactics.ahead import PlanUnit
from tamis.compiler.tactics.base import Choice, Layer, Lowered, flops_of, moved_bytes_of, uniform_format
from tamis.compiler.tactics.cuda_steps import compiles_for
from tamis.compiler.tactics.precision import runs_in, to_precision
from tamis.compiler.tactics.product import refuses_weights
from tamis.compiler.tactics.rest import rest_parameters, result_of, with_rest
from tamis.compiler.tactics.space_to_depth import (
    Rearranged,
    rearranged,
    rearranged_weight,
    rearrangements,
    rearranging_step,
)
from tamis.devices.cuda.cudnn_graph import can_fuse, has_ready_engines
from tamis.devices.cuda.cudnn_problem import conv_problem
from tamis.engine.plan import DeviceInfo, Format, Step
from tamis.formats.dtype import DType

# Ranks that race: of plans that are ready, of plans that are compiled (half a second each), of each padding, and of
# space to depth and each padding beside it.
READY_RANKS, COMPILED_RANKS, PADDED_RANKS, BLOCKED_RANKS = 8, 4, 4, 2
_RELU = Pointwise("relu")


@dataclass(frozen=True)
class Split:
    """What one step computes behind the convolution, and what is left: ``bias`` tells which of them adds it."""

    fused: Program
    tail: Program
    bias: bool


@dataclass(frozen=True)
class Call:
    """One ``cudnn.conv`` step: what it computes, on which rearranged image if any, and whether it has a bias."""

    split: Split
    made: Rearranged | None
    bias: bool
    attributes: dict[str, Any]


class CudnnConv:
    """Fused convolutions through cuDNN graphs."""

    name = "cudnn.conv"
    sparse = False

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Anything that is not a 2-D convolution with constant weights, or a device without the libraries."""
        reason = refuses_conv(layer, device)
        if reason is None and "cudnn_frontend" not in device.libraries:
            return "the Python package nvidia-cudnn-frontend is not installed"
        return reason

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """Each allowed precision: what is fused, rearranged images of few channels, ranks."""
        for precision in config.precisions:
            if not runs_in(precision, device):
                continue
            formats = _formats(layer, precision)
            for fuse in _fusions(layer):
                split = _split(layer, fuse)
                wish = {} if fuse == "all" else {"fuse": fuse}
                rest = rest_parameters(*_tail(layer, split), device)
                ranks = READY_RANKS if _is_ready(split.fused) else COMPILED_RANKS
                for rank in range(min(config.algorithms, ranks)):
                    parameters: dict[str, Any] = {"rank": rank} | wish | rest
                    yield Choice(self.name, precision, *formats, parameters=parameters)
            ways = rearrangements(layer, precision) if compiles_for(device) else ()
            ranks = BLOCKED_RANKS if any("space_to_depth" in way for way in ways) else PADDED_RANKS
            image = formats[0][0]
            # As the network's inputs come, or as other layers leave them.
            sources = dict.fromkeys((Format(DType.FLOAT32), Format(image.dtype), image))
            for way, source, rank in product(ways, sources, range(min(config.algorithms, ranks))):
                parameters = {"rank": rank, "architecture": device.architecture, **way}
                yield Choice(self.name, precision, (source, *formats[0][1:]), formats[1], parameters=parameters)

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """The call; before it a step that rearranges the image, after it a step for what it does not fuse."""
        node, call = layer.node, _call(layer, choice)
        split, made = call.split, call.made
        constants = _packed(layer, choice.precision, bias=call.bias, made=made)
        image = node.inputs[0]
        before: tuple[Step, ...] = ()
        temporaries: dict[str, tuple[tuple[int, ...], Format]] = {}
        if made:
            image = f"{node.output}/rearranged_input"
            shape = (layer.type(0).shape[0], made.channels, *made.size)
            temporaries[image] = (shape, Format(choice.precision.storage, "channels_last"))
            step, binary = rearranging_step(layer, choice, made, image)
            before, constants = (step,), constants | binary
        residuals = tuple(node.inputs[s.operand] for s in split.fused if s.operand is not None)
        return _finished(
            layer, choice, split, (image, *residuals), ("cudnn.conv", call.attributes), constants, before, temporaries
        )

    def units(self, layer: Layer, choice: Choice) -> tuple[PlanUnit, ...]:
        """The plan, if cuDNN compiles it."""
        call = _call(layer, choice)
        if _is_ready(call.split.fused):
            return ()
        image, weight = layer.type(0).shape, layer.constants[layer.node.inputs[1]]
        kernel = (weight.shape[0], *weight.shape[2:], weight.shape[1])
        if call.made:
            image = (image[0], call.made.channels, *call.made.size)
            kernel = rearranged_weight(weight, layer.op.pads, call.made).shape
        problem = conv_problem(call.attributes, image, kernel, choice.precision, bias=call.bias)
        return (PlanUnit(problem, choice.parameters["rank"]),)


class CudnnTorch:
    """Convolutions through PyTorch's cuDNN operators."""

    name = "cudnn.torch"
    sparse = False

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Anything that is not a 2-D convolution with constant weights and symmetric padding."""
        reason = refuses_conv(layer, device)
        if reason is None and layer.op.pads[:2] != layer.op.pads[2:]:
            return f"asymmetric padding {layer.op.pads}"
        return reason

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """Each allowed precision."""
        for precision in config.precisions:
            if runs_in(precision, device):
                rest = rest_parameters(*_tail(layer, _torch_split(layer, precision)[1]), device)
                yield Choice(self.name, precision, *_formats(layer, precision), parameters=rest)

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """The call, and a step for what it does not fuse."""
        fused, split = _torch_split(layer, choice.precision)
        constants = _packed(layer, choice.precision, bias=fused != "none")
        residuals = tuple(layer.node.inputs[s.operand] for s in split.fused if s.operand is not None)
        inputs = (layer.node.inputs[0], *residuals)
        return _finished(
            layer, choice, split, inputs, ("cudnn.torch_conv", _geometry(layer.op) | {"fused": fused}), constants
        )


def refuses_conv(layer: Layer, device: DeviceInfo) -> str | None:
    """Why cuDNN cannot run a layer on a device, or None."""
    op = layer.op
    if device.kind != "cuda":
        return "runs on CUDA devices only"
    version = device.architecture.removeprefix("sm_")
    if version.isdecimal() and int(version) < 80:
        return f"needs compute capability 8.0 or newer; this is {device.architecture}"
    if "cudnn" not in device.libraries:
        return "this PyTorch has no cuDNN"
    if isinstance(op, ConvTranspose):
        return "transposed convolutions are left to aten"
    if not isinstance(op, Conv):
        return f"{type(op).__name__} is not a convolution"
    if len(op.strides) != 2:
        return f"{len(op.strides)}-D convolution; only 2-D is offered"
    if layer.type(0).dtype != DType.FLOAT32:
        return f"the input is {layer.type(0).dtype}, not floating point"
    if layer.constant(0) is not None:
        return "the input is a constant"
    return refuses_weights(layer)


def _formats(layer: Layer, precision: DType) -> tuple[tuple[Format, ...], tuple[Format, ...]]:
    """Formats of the run-time values and of the outputs: images lie channels last."""
    storage = precision.storage
    inputs = tuple(uniform_format(layer.types[v], storage, True) for v in layer.values)
    return inputs, tuple(uniform_format(layer.types[v], storage, True) for v in layer.node.outputs)


def _is_residual(layer: Layer, step: Pointwise) -> bool:
    """Whether a step adds a run-time value of the output's shape."""
    if step.kind != "add" or step.operand is None:
        return False
    operand = layer.node.inputs[step.operand]
    return operand not in layer.constants and layer.types[operand] == layer.types[layer.node.output]


def _split(layer: Layer, fuse: str) -> Split:
    """The longest prefix of the epilogue that one graph computes under a wish, and the rest."""
    program = epilogue_of(layer.op)
    if fuse == "none":
        return Split((), program, False)
    count, residuals = 0, 0
    for step in program:
        if step.operand is None:
            fits = fuse == "all" and can_fuse(step.kind, step.params)
        else:
            residuals += 1
            fits = residuals == 1 and _is_residual(layer, step) and (fuse == "all" or count == 0)
        if not fits:
            break
        count += 1
    return Split(program[:count], program[count:], True)


def _call(layer: Layer, choice: Choice) -> Call:
    """What a choice of ``cudnn.conv`` asks of cuDNN."""
    split = _split(layer, choice.parameters.get("fuse", "all"))
    made = rearranged(layer, choice.precision, choice.parameters)
    attributes = _geometry(layer.op, made) | {
        "rank": choice.parameters["rank"],
        "epilogue": [{"kind": s.kind, "params": list(s.params)} for s in split.fused],
    }
    # Without a bias only engines that are compiled at run time would remain.
    return Call(split, made, split.bias if layer.op.bias else bool(split.fused), attributes)


def _is_ready(fused: Program) -> bool:
    """Whether cuDNN need not compile a graph with this epilogue."""
    return has_ready_engines(["add" if step.operand is not None else step.kind for step in fused])


def _fusions(layer: Layer) -> tuple[str, ...]:
    """Values of ``fuse`` that make a difference for a layer, the most fused first."""
    wishes = ["all"]
    if not _is_ready(_split(layer, "all").fused):
        wishes.append("sum")
    if layer.op.groups > 1:
        wishes.append("none")
    found: dict[tuple[Program, bool], str] = {}
    for wish in wishes:
        split = _split(layer, wish)
        found.setdefault((split.fused, split.bias and layer.op.bias), wish)
    return tuple(found.values())


def _torch_split(layer: Layer, precision: DType) -> tuple[str, Split]:
    """Which of PyTorch's operators serves, and what it leaves."""
    program = epilogue_of(layer.op)
    if precision.size_bytes == 2:
        if program[:1] == (_RELU,):
            return "relu", Split(program[:1], program[1:], True)
        if len(program) > 1 and _is_residual(layer, program[0]) and program[1] == _RELU:
            return "add_relu", Split(program[:2], program[2:], True)
    return "none", Split((), program, False)


def _geometry(op: Conv, made: Rearranged | None = None) -> dict[str, Any]:
    """How the kernel goes over the layer's image, or over a rearranged one."""
    return {
        "strides": list((made or op).strides), "pads": list((made or op).pads), "dilations": list(op.dilations),
        "groups": op.groups,
    }  # fmt: skip


def _packed(layer: Layer, precision: DType, *, bias: bool, made: Rearranged | None = None) -> dict[str, np.ndarray]:
    """The weight as [K, R, S, C / groups], or for a rearranged image, and the bias [K]."""
    weight = layer.constants[layer.node.inputs[1]]
    weight = rearranged_weight(weight, layer.op.pads, made) if made else weight.transpose(0, 2, 3, 1)
    constants = {f"{layer.name}.weight": np.ascontiguousarray(to_precision(weight, precision))}
    if bias:
        values = layer.constants[layer.node.inputs[2]] if layer.op.bias else np.zeros(weight.shape[0], np.float32)
        constants[f"{layer.name}.bias"] = to_precision(values.reshape(-1), precision)
    return constants


def _finished(
    layer: Layer,
    choice: Choice,
    split: Split,
    inputs: tuple[str, ...],
    call: tuple[str, dict[str, Any]],
    constants: dict[str, np.ndarray],
    before: tuple[Step, ...] = (),
    temporaries: dict[str, tuple[tuple[int, ...], Format]] | None = None,
) -> Lowered:
    """The step of a call between the steps before it and the rest of the epilogue."""
    source, program = _tail(layer, split)
    step = Step(
        layer.name, call[0], inputs, (result_of(layer, program),), tuple(constants), call[1], (layer.name,),
        choice.precision, flops=flops_of(layer), moved_bytes=moved_bytes_of(layer, choice),
    )  # fmt: skip
    return with_rest(Lowered((*before, step), constants, temporaries or {}), source, program, choice)


def _tail(layer: Layer, split: Split) -> tuple[Layer, Program]:
    """The program that is left, with the bias in front when the call does not add it, and the layer it refers to."""
    if split.bias or not layer.op.bias:
        return layer, split.tail
    column = f"{layer.name}.bias_column"
    values = layer.constants[layer.node.inputs[2]].reshape(1, -1, 1, 1)
    node = replace(layer.node, inputs=(*layer.node.inputs, column))
    types = {**layer.types, column: TensorType(values.shape)}
    widened = replace(layer, node=node, types=types, constants={**layer.constants, column: values})
    return widened, (Pointwise("add", operand=len(layer.node.inputs)), *split.tail)
