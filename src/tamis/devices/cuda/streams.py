"""Steps on a second stream: events keep the order that the plan asks for.

Recorded as a CUDA graph, the events become edges: what runs aside is a branch of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tamis.devices.base import Runner, Slots
from tamis.engine.plan import Step

# Families whose steps compute in memory that they are given, scratch memory included, and allocate nothing.
_ASIDE = ("cublaslt.", "cudnn.conv", "cusparselt.", "cuda.")


def runs_aside(step: Step) -> bool:
    """Whether a step may run beside others."""
    return step.kernel.startswith(_ASIDE)


def ordered(steps: Sequence[Step], runners: Sequence[Runner]) -> list[Runner]:
    """The runners, each on its step's stream: for stream 0 the caller's current one, for others one of their own."""
    if not any(step.stream or step.waits for step in steps):
        return list(runners)
    streams = {step.stream: torch.cuda.Stream() for step in steps if step.stream}  # type: ignore[no-untyped-call]
    events = {number: torch.cuda.Event() for step in steps for number in step.waits}  # type: ignore[no-untyped-call]
    return [
        _placed(runner, streams.get(step.stream), [events[n] for n in step.waits], events.get(number))
        for number, (step, runner) in enumerate(zip(steps, runners, strict=True))
    ]


def _placed(
    runner: Runner, stream: torch.cuda.Stream | None, waits: Sequence[torch.cuda.Event], done: torch.cuda.Event | None
) -> Runner:
    if stream is None and not waits and done is None:
        return runner

    def run(slots: Slots) -> None:
        with torch.cuda.stream(stream):  # None: the current one
            current = torch.cuda.current_stream()
            for event in waits:
                current.wait_event(event)
            runner(slots)
            if done is not None:
                done.record(current)

    return run
