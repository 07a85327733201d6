"""Recording work as a CUDA graph, so that a run costs the host one launch."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence

import torch

# Runs before a recording: libraries choose algorithms and allocate on first use.
_WARMUPS = 2


def record(run: Callable[[], None]) -> Callable[[], None]:
    """A function that repeats what ``run`` gives to the GPU, on the same addresses.

    Where the work cannot be recorded (a kernel that waits for the host), ``run`` itself is returned, with a warning.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(_WARMUPS):
                run()
        torch.cuda.synchronize()
        # PyTorch keeps scratch memory for its matrix products by stream, and hands out the same streams again: without
        # this, two graphs could share it. Made during the recording, it belongs to the graph.
        torch._C._cuda_clearCublasWorkspaces()
        with torch.cuda.graph(graph, stream=stream):
            run()
        torch._C._cuda_clearCublasWorkspaces()
    except RuntimeError as error:
        torch.cuda.synchronize()
        warnings.warn(f"the engine runs step by step, not as a CUDA graph: {str(error).splitlines()[0]}", stacklevel=2)
        return run

    def replay(_keep: object = run) -> None:  # what the graph works on lives as long as the graph
        graph.replay()

    return replay


def part_timer(parts: Sequence[Callable[[], None]], *, recorded: bool) -> Callable[[], list[float]]:
    """A function that runs the parts, recorded as one graph or each time anew, and returns the microseconds of each.

    Events between the parts are nodes of the graph, so the times are those of a replay. Run anew, a part that is
    shorter than its launch takes as long as the host does.
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

    replay = record(run) if recorded else run

    def timed() -> list[float]:
        replay()
        torch.cuda.synchronize()
        return [first.elapsed_time(second) * 1e3 for first, second in itertools.pairwise(events)]

    return timed
