"""Recording on the GPU: graphs that others have recorded, and those of other sessions, keep their scratch memory."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

from tamis.devices.cuda import graph
from tamis.devices.cuda.graph import record

SPOILT = 24  # blocks of 32 MiB, the size of PyTorch's scratch memory on Hopper


def product(seed: int) -> tuple[Callable[[], torch.Tensor], torch.Tensor]:
    """A product that cuBLAS splits along its long inner dimension, with partial sums in scratch memory."""
    generator = torch.Generator("cuda").manual_seed(seed)
    a, b = (torch.randn(shape, device="cuda", generator=generator).half() for shape in ((64, 16384), (16384, 64)))
    out = torch.empty(64, 64, device="cuda", dtype=torch.float16)
    return lambda: torch.mm(a, b, out=out), out


def test_a_recording_leaves_the_graphs_of_others_alone() -> None:
    run, out = product(0)
    theirs, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    with torch.cuda.graph(theirs, stream=stream):
        run()
    expected = product(0)
    expected[0]()
    ours, _ = product(1)
    record(ours)()
    blocks = [torch.full((8 << 20,), 3.0, device="cuda") for _ in range(SPOILT)]
    out.fill_(float("nan"))
    for _ in range(3):
        theirs.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(out, expected[1])
    assert all(bool((block == 3.0).all()) for block in blocks)


def test_two_graphs_at_once_do_not_disturb_each_other() -> None:
    made = [product(seed) for seed in range(2)]
    replays, expected = [record(run) for run, _ in made], []
    for replay, (_, out) in zip(replays, made, strict=True):
        replay()
        expected.append(out.clone())
        assert bool(out.isfinite().all()) and bool(out.any())
    wrong, streams = torch.zeros(2, dtype=torch.int64, device="cuda"), [torch.cuda.Stream() for _ in made]
    torch.cuda.synchronize()
    for _ in range(1000):
        for index, (replay, stream) in enumerate(zip(replays, streams, strict=True)):
            with torch.cuda.stream(stream):
                replay()
                wrong[index].add_((made[index][1] != expected[index]).any())
    torch.cuda.synchronize()
    assert wrong.tolist() == [0, 0]


def test_a_graph_survives_when_others_empty_the_store() -> None:
    run, out = product(0)
    replay = record(run)
    replay()
    expected = out.clone()
    torch._C._cuda_clearCublasWorkspaces()  # as torch.compile does around its own graphs
    blocks = [torch.full((8 << 20,), 3.0, device="cuda") for _ in range(SPOILT)]
    out.fill_(float("nan"))
    replay()
    assert torch.equal(out, expected)
    assert all(bool((block == 3.0).all()) for block in blocks)


def test_the_place_of_a_dead_graph_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_free", {})
    run, out = product(0)
    replay = record(run)
    del replay
    gc.collect()
    (places,) = graph._free.values()
    assert len(places) == 1
    again = record(run)
    assert not places
    out.fill_(float("nan"))
    again()
    assert bool(out.isfinite().all())
