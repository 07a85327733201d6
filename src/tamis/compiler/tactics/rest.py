"""What a kernel cannot fuse of its layer's epilogue: the step behind it that runs the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tamis.compiler.ir.ops import Pointwise, Program, operand_start
from tamis.compiler.tactics.base import Choice, Layer, Lowered
from tamis.compiler.tactics.cuda_steps import can_run, compiles_for, program_step
from tamis.compiler.tactics.precision import to_precision
from tamis.engine.plan import DeviceInfo, Step


def rest_parameters(layer: Layer, program: Program, device: DeviceInfo) -> dict[str, Any]:
    """Parameters of a choice that leaves ``program`` to a step behind it: what that step needs to be compiled."""
    ours = bool(program) and can_run(layer, program) and compiles_for(device)
    return {"architecture": device.architecture} if ours else {}


def result_of(layer: Layer, rest: Program) -> str:
    """The name of what a layer's last step makes when it leaves ``rest`` of the epilogue."""
    return f"{layer.node.output}/before_epilogue" if rest else layer.node.output


def with_rest(lowered: Lowered, layer: Layer, rest: Program, choice: Choice) -> Lowered:
    """The steps of a layer, and one that runs on the last one's result what they leave of the epilogue.

    That one is a kernel of ours where it can be, else PyTorch's.
    """
    if not rest:
        return lowered
    source = result_of(layer, rest)
    if "architecture" in choice.parameters:
        step, constants = program_step(layer, rest, source, choice, f"{layer.name}/epilogue")
    else:
        step, constants = _pointwise_step(layer, rest, source, choice)
    place = layer.types[layer.node.output].shape, choice.outputs[0]
    return lowered.before(Lowered((step,), constants, {source: place}))


def _pointwise_step(
    layer: Layer, program: tuple[Pointwise, ...], source: str, choice: Choice
) -> tuple[Step, dict[str, np.ndarray]]:
    """A step that applies the rest of an epilogue to ``source`` and writes the layer's output."""
    node, start = layer.node, operand_start(layer.op)
    values, constants = [source], []
    arguments = ["in0"]
    moved = []
    for step in program:
        if step.operand is None:
            moved.append(step)
            continue
        name = node.inputs[step.operand]
        assert step.operand >= start
        if name in layer.constants:
            if name not in constants:
                constants.append(name)
            arguments.append(f"const{constants.index(name)}")
        else:
            if name not in values:
                values.append(name)
            arguments.append(f"in{values.index(name)}")
        moved.append(replace(step, operand=len(arguments) - 1))
    attributes = {
        "program": [{"kind": s.kind, "params": list(s.params), "operand": s.operand, "swap": s.swap} for s in moved],
        "arguments": arguments,
    }
    packed = {name: to_precision(layer.constants[name], choice.precision) for name in constants}
    bytes_moved = layer.types[node.output].elements * choice.outputs[0].dtype.size_bytes * (1 + len(values))
    step_ = Step(
        f"{layer.name}/epilogue", "aten.elementwise", tuple(values), (node.output,), tuple(constants), attributes,
        (layer.name,), choice.precision, moved_bytes=bytes_moved,
    )  # fmt: skip
    return step_, packed
