"""oneDNN through PyTorch's fused operators, with weights reordered once when the engine is loaded.

``onednn.conv``, ``onednn.conv_transpose`` and ``onednn.linear`` compute the layer, one binary step with a
residual of the output's shape, and one unary step, in one library call. PyTorch gives no way to write into
given memory, so the results are allocated by the library (about a microsecond each). Nor does it promise a memory
order: a convolution may answer a row-major image with a channels-last one, so every result is brought into the
order that the plan names, which costs nothing when it already is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tamis.devices.base import BoundShape, Runner, Slots, Tensor
from tamis.devices.tensors import memory_format
from tamis.engine.plan import Step
from tamis.errors import DeviceError


def bind(
    step: Step, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]
) -> Runner:
    """A runner for one ``onednn.*`` step. Constants: weight, then bias if any. Inputs: x, then the residual."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise DeviceError(
            "this PyTorch has no oneDNN", layer=step.name, remedy="install the official CPU build of PyTorch"
        )
    binders = {"onednn.conv": _conv, "onednn.conv_transpose": _conv_transpose, "onednn.linear": _linear}
    if step.kernel not in binders:
        raise DeviceError(f"kernel {step.kernel} is unknown", layer=step.name, remedy="build the engine again")
    weight = constants[step.constants[0]]
    bias = constants[step.constants[1]] if len(step.constants) > 1 else None
    return binders[step.kernel](step, weight, bias, inputs, outputs[0])


def _unary(step: Step) -> tuple[str, list[float], str]:
    unary = step.attributes.get("unary")
    return (unary["name"], list(unary["scalars"]), unary["algorithm"]) if unary else ("none", [], "")


def _conv(step: Step, weight: Tensor, bias: Tensor | None, inputs: Sequence[BoundShape], output: BoundShape) -> Runner:
    a = step.attributes
    pads, strides, dilations, groups = list(a["pads"]), list(a["strides"]), list(a["dilations"]), int(a["groups"])
    weight = torch.ops.mkldnn._reorder_convolution_weight(
        weight, pads, strides, dilations, groups, list(inputs[0].shape)
    )
    name, scalars, algorithm = _unary(step)
    x, result, order = inputs[0].slot, output.slot, memory_format(len(output.shape), output.format)
    if a["binary"] is None:
        plain = torch.ops.mkldnn._convolution_pointwise.default

        def run(slots: Slots) -> None:
            y = plain(slots[x], weight, bias, pads, strides, dilations, groups, name, scalars, algorithm)
            slots[result] = y.contiguous(memory_format=order)

        return run
    fused = torch.ops.mkldnn._convolution_pointwise.binary
    other, binary, unary = inputs[1].slot, str(a["binary"]), None if name == "none" else name

    def run_binary(slots: Slots) -> None:
        y = fused(
            slots[x], slots[other], weight, bias, pads, strides, dilations, groups,
            binary, 1.0, unary, scalars, algorithm,
        )  # fmt: skip
        slots[result] = y.contiguous(memory_format=order)

    return run_binary


def _conv_transpose(
    step: Step, weight: Tensor, bias: Tensor | None, inputs: Sequence[BoundShape], output: BoundShape
) -> Runner:
    a = step.attributes
    pads, strides, dilations, groups = list(a["pads"]), list(a["strides"]), list(a["dilations"]), int(a["groups"])
    extra = list(a["output_pads"])
    weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(
        weight, pads, extra, strides, dilations, groups, list(inputs[0].shape)
    )
    name, scalars, algorithm = _unary(step)
    x, result, order = inputs[0].slot, output.slot, memory_format(len(output.shape), output.format)
    call = torch.ops.mkldnn._convolution_transpose_pointwise.default

    def run(slots: Slots) -> None:
        y = call(slots[x], weight, bias, pads, extra, strides, dilations, groups, name, scalars, algorithm)
        slots[result] = y.contiguous(memory_format=order)

    return run


def _linear(
    step: Step, weight: Tensor, bias: Tensor | None, inputs: Sequence[BoundShape], output: BoundShape
) -> Runner:
    rows = 1
    for extent in inputs[0].shape[:-1]:
        rows *= extent
    weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    name, scalars, algorithm = _unary(step)
    x, result = inputs[0].slot, output.slot
    if step.attributes["binary"] is None:
        plain: Any = torch.ops.mkldnn._linear_pointwise.default

        def run(slots: Slots) -> None:
            slots[result] = plain(slots[x], weight, bias, name, scalars, algorithm)

        return run
    fused = torch.ops.mkldnn._linear_pointwise.binary
    other, binary = inputs[1].slot, str(step.attributes["binary"])

    def run_binary(slots: Slots) -> None:
        slots[result] = fused(slots[x], slots[other], weight, bias, binary)

    return run_binary
