"""Where the values of a running engine lie: slots, the arena, views, and when each may be dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tamis.devices.base import BoundShape, Device, Runner, Slots, Tensor
from tamis.engine.plan import Buffer, Format, Plan


@dataclass(frozen=True)
class Memory:
    """The slots of an engine, one for each buffer in the order of the plan.

    ``slots`` holds tensors for all that lies in the arena and None for the rest; ``fixed`` says which.
    ``views[n]`` are the runners that make views of what step ``n - 1`` has produced (``views[0]``: of the
    inputs), ``drops[n]`` the slots that nobody reads after step ``n``.
    """

    arena: Tensor
    slots: Slots
    index: dict[str, int]
    fixed: frozenset[str]
    views: tuple[tuple[Runner, ...], ...]
    drops: tuple[tuple[int, ...], ...]

    def bound(self, plan: Plan, names: Sequence[str], *, outputs: bool = False) -> list[BoundShape]:
        """The slots of some buffers, as ``Device.bind`` wants them."""
        buffers = [plan.buffers[self.index[name]] for name in names]
        return [
            BoundShape(self.index[b.name], b.shape, b.format, preallocated=outputs and b.name in self.fixed)
            for b in buffers
        ]


def lay_out(plan: Plan, device: Device) -> Memory:
    """Allocate the arena of a plan and the views in it; the plan has passed ``check_plan``."""
    buffers = {buffer.name: buffer for buffer in plan.buffers}
    index = {buffer.name: number for number, buffer in enumerate(plan.buffers)}
    arena = device.arena(plan.arena_bytes)
    slots: Slots = [None] * len(plan.buffers)
    fixed = set()
    for buffer in plan.buffers:
        base, offset = owner(buffers, buffer)
        if base.place == "arena":
            slots[index[buffer.name]] = device.view(arena, base.offset + offset, buffer.shape, buffer.format)
            fixed.add(buffer.name)
    views, drops = _views(plan, buffers, index), _drops(plan, buffers, index)
    return Memory(arena, slots, index, frozenset(fixed), views, drops)


def owner(buffers: dict[str, Buffer], buffer: Buffer) -> tuple[Buffer, int]:
    """The buffer whose memory a buffer lies in, and how many bytes after its start."""
    offset = 0
    while buffer.place == "alias":
        offset += buffer.offset
        buffer = buffers[buffer.alias_of]
    return buffer, offset


def reinterpret(tensor: Tensor, old: Format, shape: tuple[int, ...], new: Format) -> Tensor:
    """The elements of ``tensor``, in the order in which they lie in memory, in another shape and layout."""
    if old.layout == "channels_last":
        tensor = tensor.permute(0, *range(2, tensor.dim()), 1)
    if new.layout == "channels_last":
        stored = tensor.reshape(shape[0], *shape[2:], shape[1])
        return stored.permute(0, stored.dim() - 1, *range(1, stored.dim() - 1))
    return tensor.reshape(shape)


def fill_with_nan(arena: Tensor) -> None:
    """Set every bit of a block of memory: each floating-point type reads NaN there."""
    arena.view(torch.uint8).fill_(255)


def _views(plan: Plan, buffers: dict[str, Buffer], index: dict[str, int]) -> tuple[tuple[Runner, ...], ...]:
    """Runners for the aliases that no step writes and that do not lie in the arena."""
    made = {name: number + 1 for number, step in enumerate(plan.steps) for name in step.outputs}
    made.update(dict.fromkeys(plan.input_values, 0))
    views: list[list[Runner]] = [[] for _ in range(len(plan.steps) + 1)]

    def place(buffer: Buffer) -> None:
        if buffer.name in made or buffer.place != "alias" or owner(buffers, buffer)[0].place == "arena":
            return
        source = buffers[buffer.alias_of]
        place(source)  # a view of a view comes after it
        if source.name not in made:
            return  # nobody reads it, or check_plan would have refused
        made[buffer.name] = made[source.name]
        views[made[source.name]].append(_view(index[source.name], index[buffer.name], source, buffer))

    for buffer in plan.buffers:
        place(buffer)
    return tuple(map(tuple, views))


def _view(source_slot: int, slot: int, source: Buffer, buffer: Buffer) -> Runner:
    old, shape, new = source.format, buffer.shape, buffer.format

    def view(slots: Slots) -> None:
        slots[slot] = reinterpret(slots[source_slot], old, shape, new)

    return view


def _drops(plan: Plan, buffers: dict[str, Buffer], index: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    """The slots to empty after each step, so that memory a library allocated can be used again.

    A view holds on to the memory itself, so every slot is dropped after its own last use.
    """
    last: dict[str, int] = {}
    for number, step in enumerate(plan.steps):
        last.update(dict.fromkeys((*step.inputs, *step.outputs), number))
    drops: list[list[int]] = [[] for _ in plan.steps]
    for name, number in last.items():
        base = owner(buffers, buffers[name])[0]
        if base.place != "arena" and name not in plan.output_values and name not in plan.input_values:
            drops[number].append(index[name])
    return tuple(map(tuple, drops))
