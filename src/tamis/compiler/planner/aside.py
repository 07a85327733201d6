"""Which steps run aside, on a second stream, while the others go on.

A step need not wait for those between what it reads and itself, nor they for it: the shortcut of a residual block can
be computed beside the block. Where small layers leave most of a GPU idle, that hides the step. It costs memory, since
what it reads and writes must not be used by the steps that it runs beside; whether it pays is for the contest of whole
engines to measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tamis.compiler.planner.views import Flow
from tamis.devices.base import Device

# The stream of all other steps, and the one aside.
MAIN, ASIDE = 0, 1


@dataclass(frozen=True)
class Aside:
    """A flow with some steps aside. ``spans`` says, by number, from which to which step each may be running."""

    flow: Flow
    spans: Mapping[int, tuple[int, int]]


def aside(flow: Flow, outputs: tuple[str, ...], device: Device) -> Aside | None:
    """The flow with every step aside that may be; None where there is none.

    A step may run aside when the device says so, the main stream has work for it to run beside, and no other step aside
    runs then. It waits for the last step that makes something it reads, and the first that reads its results for it.
    """

    def root_of(value: str) -> str:
        """The value in whose memory a value lies: reshapes are no steps."""
        while value in flow.aliases:
            value = flow.aliases[value].inputs[0]
        return value

    made: dict[str, int] = {}
    kept = {root_of(value) for value in outputs}
    readers: dict[str, list[int]] = {}
    for number, step in enumerate(flow.steps):
        for value in step.inputs:
            readers.setdefault(root_of(value), []).append(number)
    waits: dict[int, tuple[int, ...]] = {}
    spans: dict[int, tuple[int, int]] = {}
    free = 0
    for number, step in enumerate(flow.steps):
        sources = [made[root_of(value)] for value in step.inputs if root_of(value) in made]
        made |= dict.fromkeys(step.outputs, number)
        found = [reader for value in step.outputs for reader in readers.get(value, ()) if reader > number]
        if not sources or not found or not kept.isdisjoint(step.outputs):
            continue
        source, reader = max(sources), min(found)
        beside = [flow.steps[n] for n in range(source + 1, reader) if n != number]
        if source < free or not device.runs_aside(step) or not any(other.moved_bytes for other in beside):
            continue
        # What a library allocates may be handed on while the step aside still reads it.
        if not all(device.writes_into_memory(flow.steps[n]) for n in sources):
            continue
        spans[number], free = (source + 1, reader), reader
        waits[number] = (source,)
        waits[reader] = (*waits.get(reader, ()), number)
    if not spans:
        return None
    steps = tuple(
        replace(step, stream=ASIDE if number in spans else MAIN, waits=waits.get(number, ()))
        for number, step in enumerate(flow.steps)
    )
    return Aside(replace(flow, steps=steps), spans)
