"""Recording work as a CUDA graph, so that a run costs the host one launch."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tamis.devices.cuda.module import create_stream
from tamis.devices.cuda.overlap import OVERLAP
from tamis.errors import DeviceError

# Runs before a recording: libraries choose algorithms and allocate on first use.
_WARMUPS = 2


@dataclass(frozen=True)
class _Place:
    """Where a graph is recorded: a stream that nothing else uses, and the memory of what the recording allocates.

    PyTorch keeps scratch memory for its matrix products by stream, and hands out the same few streams again and again.
    Two graphs recorded on one stream would share it, and disturb each other when they run at the same time. Emptying
    PyTorch's store before a recording is no way out: it takes the memory from graphs that others have recorded.
    """

    stream: torch.cuda.Stream
    pool: torch.cuda.MemPool


# Places whose graph is gone. The next graph there finds its scratch memory, in a pool that is still alive.
_free: dict[int, list[_Place]] = {}


def _take_place() -> _Place:
    device = torch.cuda.current_device()
    places = _free.setdefault(device, [])
    if places:
        return places.pop()
    stream = torch.cuda.ExternalStream(create_stream(device), device)  # type: ignore[no-untyped-call]
    return _Place(stream, torch.cuda.MemPool())


def record(run: Callable[[], None]) -> Callable[[], None]:
    """A function that repeats what ``run`` gives to the GPU, on the same addresses.

    Where the work cannot be recorded (a kernel that waits for the host), ``run`` itself is returned, with a warning.
    Where it can be recorded only if kernels do not overlap, they do not from then on.
    """
    try:
        graph, place = _graph_of(run)
    except RuntimeError as error:
        torch.cuda.synchronize()
        warnings.warn(f"the engine runs step by step, not as a CUDA graph: {_first_line(error)}", stacklevel=2)
        return run

    def replay(_keep: object = run) -> None:  # what the graph works on lives as long as the graph
        graph.replay()

    # Not by the function itself, whose graph is then still there.
    weakref.finalize(graph, _free[torch.cuda.current_device()].append, place)
    return replay


def _graph_of(run: Callable[[], None]) -> tuple[torch.cuda.CUDAGraph, _Place]:
    if not OVERLAP.on:
        return _capture(run)
    try:
        return _capture(run)
    except (RuntimeError, DeviceError) as error:
        torch.cuda.synchronize()
        with OVERLAP.off():
            recorded = _capture(run)
        if not OVERLAP.reason:
            OVERLAP.refuse(f"a recording with it failed: {_first_line(error)}")
        return recorded


def _capture(run: Callable[[], None]) -> tuple[torch.cuda.CUDAGraph, _Place]:
    for _ in range(_WARMUPS):
        run()
    torch.cuda.synchronize()
    graph, place = torch.cuda.CUDAGraph(), _take_place()
    with torch.cuda.graph(graph, pool=place.pool.id, stream=place.stream):  # type: ignore[arg-type]
        run()
    return graph, place


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def part_timer(parts: Sequence[Callable[[], None]], *, recorded: bool) -> Callable[[], list[float]]:
    """A function that runs the parts, recorded as one graph or each time anew, and returns the microseconds of each.

    Events between the parts are nodes of the graph, so the times are those of a replay, but for the overlap of kernels,
    which there is none of behind an event. Run anew, a part that is shorter than its launch takes as long as the host
    does.
    """
    events = [
        torch.cuda.Event(enable_timing=True, external=True)  # type: ignore[no-untyped-call]
        for _ in range(len(parts) + 1)
    ]

    def run() -> None:
        events[0].record()
        for part, event in zip(parts, events[1:], strict=True):
            part()
            event.record()

    with OVERLAP.off():
        replay = record(run) if recorded else run

    def timed() -> list[float]:
        replay()
        torch.cuda.synchronize()
        return [first.elapsed_time(second) * 1e3 for first, second in itertools.pairwise(events)]

    return timed
