"""One lowered choice, bound on the device to real values, ready to be called and checked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from tamis.compiler.ir.graph import TensorType
from tamis.compiler.tactics.base import Lowered
from tamis.compiler.tuner.suspect import Suspect
from tamis.compiler.tuner.timing import Contender
from tamis.devices.base import BoundShape, Device, Runner, Slots, Tensor
from tamis.engine.plan import Format, Step


class SharedMemory:
    """Tensors that the candidates of one race share, since they run one after the other.

    Without it a race of sixty candidates for a large layer would hold sixty copies of its activations.
    """

    def __init__(self) -> None:
        self._tensors: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, made when first asked for."""
        if key not in self._tensors:
            self._tensors[key] = make()
        return self._tensors[key]


@dataclass(frozen=True)
class Trial:
    """Bound steps over their slots. ``outputs`` are the slots of the results, ``made`` those that steps allocate."""

    runners: tuple[Runner, ...]
    slots: Slots
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    made: tuple[int, ...] = ()

    def run(self) -> None:
        """Execute the steps once."""
        slots = self.slots
        for runner in self.runners:
            runner(slots)

    def let_go(self) -> None:
        """Free what the steps have allocated; the next run allocates it again."""
        for slot in self.made:
            self.slots[slot] = None

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
    memory: SharedMemory | None = None,
) -> Trial:
    """Bind lowered steps to given input tensors; outputs and temporaries lie in ``memory``, poisoned with NaN."""
    memory = memory or SharedMemory()
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
    for number, (name, (shape, format)) in enumerate({**lowered.temporaries, **shapes}.items()):
        given = device.writes_into_memory(writers[name])
        make = functools.partial(device.empty, shape, format)
        tensor = poison(memory.get((number, tuple(shape), format), make)) if given else None
        place(name, tensor, shape, format, given)
    runners = tuple(bind_step(device, step, constants, where) for step in lowered.steps)
    made = tuple(place.slot for name, place in where.items() if name not in inputs and not place.preallocated)
    return Trial(runners, slots, tuple(where[n].slot for n in inputs), tuple(where[n].slot for n in outputs), made)


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
