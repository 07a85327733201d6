"""One lowered choice, bound on the device to real values, ready to be called and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tamis.compiler.ir.graph import TensorType
from tamis.compiler.tactics.base import Lowered
from tamis.compiler.tuner.suspect import Suspect
from tamis.compiler.tuner.timing import Contender
from tamis.devices.base import BoundShape, Device, Runner, Slots, Tensor
from tamis.engine.plan import Format, Step


@dataclass(frozen=True)
class Trial:
    """Bound steps over their slots. ``outputs`` are the slots of the results."""

    runners: tuple[Runner, ...]
    slots: Slots
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def run(self) -> None:
        """Execute the steps once."""
        slots = self.slots
        for runner in self.runners:
            runner(slots)

    def contender(self, suspect: Suspect, *, settle: bool = False) -> Contender:
        """What the clock times: the steps, with the activations warm."""
        call = (lambda run=self.runners[0], slots=self.slots: run(slots)) if len(self.runners) == 1 else self.run
        floats = tuple(self.slots[i] for i in self.inputs if self.slots[i].is_floating_point())
        return Contender(call, floats, settle, suspect)


def bind_trial(
    device: Device,
    lowered: Lowered,
    inputs: Mapping[str, tuple[Tensor, Format]],
    outputs: Mapping[str, tuple[TensorType, Format]],
) -> Trial:
    """Bind lowered steps to given input tensors; outputs and temporaries are allocated, poisoned with NaN."""
    constants = {name: device.upload(array) for name, array in lowered.constants.items()}
    slots: Slots = []
    where: dict[str, BoundShape] = {}

    def place(name: str, tensor: Tensor, shape: Sequence[int], format: Format, preallocated: bool) -> None:
        where[name] = BoundShape(len(slots), tuple(shape), format, preallocated)
        slots.append(tensor)

    for name, (tensor, format) in inputs.items():
        place(name, tensor, tuple(tensor.shape), format, False)
    writers = {value: step for step in lowered.steps for value in step.outputs}
    shapes = {name: (type_.shape, format) for name, (type_, format) in outputs.items()}
    for name, (shape, format) in {**lowered.temporaries, **shapes}.items():
        given = device.writes_into_memory(writers[name])
        tensor = poison(device.empty(shape, format)) if given else None
        place(name, tensor, shape, format, given)
    runners = tuple(bind_step(device, step, constants, where) for step in lowered.steps)
    return Trial(runners, slots, tuple(where[n].slot for n in inputs), tuple(where[n].slot for n in outputs))


def bind_step(device: Device, step: Step, constants: Mapping[str, Tensor], where: Mapping[str, BoundShape]) -> Runner:
    """Bind one step whose values lie where ``where`` says."""
    return device.bind(
        step,
        {name: constants[name] for name in step.constants},
        [where[name] for name in step.inputs],
        [where[name] for name in step.outputs],
    )


def poison(tensor: Tensor) -> Tensor:
    """Fill with values that show when they are read or left unwritten: NaN, or an odd integer."""
    return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(1)
