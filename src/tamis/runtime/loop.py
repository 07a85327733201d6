"""The loop of a session: bound steps, views of their results and dropping of dead values, as one tuple."""

from __future__ import annotations

from collections.abc import Sequence

from tamis.devices.base import Device, Runner, Slots, Tensor
from tamis.engine.plan import Buffer, Plan
from tamis.runtime.memory import Memory, fill_with_nan, owner

Part = tuple[Runner, ...]


def parts_of(memory: Memory, runners: Sequence[Runner], *, drop: bool = True) -> list[Part]:
    """What to run for each step of the plan: the step, the views of its results, the drops of dead values."""
    return [
        (runner, *memory.views[number + 1], *(_dropping(memory.drops[number]) if drop else ()))
        for number, runner in enumerate(runners)
    ]


def flat_loop(plan: Plan, memory: Memory, runners: Sequence[Runner], device: Device, poison: bool) -> Part:
    """Everything a run executes, in order; with ``poison``, NaN fills what holds no live value."""
    start: Part = ()
    if poison:
        start = _wiping(memory.arena, [(0, plan.arena_bytes)])
        runners = _poisoned(plan, memory, runners)
    parts = parts_of(memory, device.ordered(plan.steps, runners))
    return (*memory.views[0], *start, *(runner for part in parts for runner in part))


def _poisoned(plan: Plan, memory: Memory, runners: Sequence[Runner]) -> list[Runner]:
    """Each step with the filling behind it as one runner.

    A step on another stream that waits for this one may write there at once, so it must wait for the filling too.
    """

    def together(runner: Runner, wipe: Runner) -> Runner:
        def run(slots: Slots) -> None:
            runner(slots)
            wipe(slots)

        return run

    wipes = [_wiping(memory.arena, ranges) for ranges in dead_ranges(plan)]
    return [together(runner, *wipe) if wipe else runner for runner, wipe in zip(runners, wipes, strict=True)]


def dead_ranges(plan: Plan) -> list[list[tuple[int, int]]]:
    """For each step, the byte ranges of the arena that hold nothing any more after it, says the planner."""
    buffers = {buffer.name: buffer for buffer in plan.buffers}
    last: dict[str, int] = {}
    for buffer in plan.buffers:
        root = owner(buffers, buffer)[0]
        end = len(plan.steps) if buffer.name in plan.output_values else buffer.last
        last[root.name] = max(last.get(root.name, 0), end)
    live = [buffers[name] for name in last if buffers[name].place == "arena"]

    def reused(buffer: Buffer, number: int) -> bool:
        return any(
            other.offset < buffer.offset + buffer.size_bytes
            and buffer.offset < other.offset + other.size_bytes
            and other.first <= number < last[other.name]
            for other in live
        )

    ranges: list[list[tuple[int, int]]] = [[] for _ in plan.steps]
    for buffer in live:
        number = last[buffer.name]
        if number < len(plan.steps) and not reused(buffer, number):
            ranges[number].append((buffer.offset, buffer.offset + buffer.size_bytes))
    return ranges


def _wiping(arena: Tensor, ranges: Sequence[tuple[int, int]]) -> Part:
    if not ranges:
        return ()

    def wipe(slots: Slots) -> None:
        for start, end in ranges:
            fill_with_nan(arena[start:end])

    return (wipe,)


def _dropping(drops: tuple[int, ...]) -> Part:
    if not drops:
        return ()
    if len(drops) == 1:
        (only,) = drops

        def drop_one(slots: Slots) -> None:
            slots[only] = None

        return (drop_one,)

    def drop(slots: Slots) -> None:
        for slot in drops:
            slots[slot] = None

    return (drop,)
