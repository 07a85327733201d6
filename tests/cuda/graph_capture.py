"""Capturing bound steps in a CUDA graph, as the runtime does."""

from __future__ import annotations

from collections.abc import Callable

import torch


def capture(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A graph of what ``run`` launches on the current stream; warmed up first, on the stream of the capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    torch.cuda.synchronize()
    return graph
