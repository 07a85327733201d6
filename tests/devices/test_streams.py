"""Two streams on a GPU: what is launched where, and which events keep the order. Without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tamis.devices.cuda import streams
from tamis.engine.plan import Step


class FakeStream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_event(self, event: FakeEvent) -> None:
        self.log.append(f"{self.name} waits for {event.after}")


class FakeEvent:
    after = "nothing"

    def record(self, stream: FakeStream) -> None:
        self.after = stream.log[-1]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    entries: list[str] = []
    current = [FakeStream("main", entries)]

    @contextmanager
    def on(stream: FakeStream | None) -> Iterator[None]:
        current.append(stream or current[-1])
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda: FakeStream("aside", entries))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: current[-1])
    return entries


def run(steps: list[Step], log: list[str]) -> list[str]:
    def runner(step: Step):  # type: ignore[no-untyped-def]
        return lambda slots: log.append(f"{torch.cuda.current_stream().name}:{step.name}")

    for each in streams.ordered(steps, [runner(step) for step in steps]):
        each([])
    return log


def test_events_keep_the_order_between_streams(log: list[str]) -> None:
    steps = [
        Step("stem", "cudnn.conv", (), ("a",)),
        Step("short", "cudnn.conv", ("a",), ("s",), stream=1, waits=(0,)),
        Step("branch", "cudnn.conv", ("a",), ("b",)),
        Step("sum", "cudnn.conv", ("b", "s"), ("y",), waits=(1,)),
    ]
    assert run(steps, log) == [
        "main:stem",
        "aside waits for main:stem",
        "aside:short",
        "main:branch",
        "main waits for aside:short",
        "main:sum",
    ]


def test_one_stream_needs_no_events(log: list[str]) -> None:
    steps = [Step(name, "cudnn.conv", (), (name,)) for name in "ab"]
    runners = [lambda slots: None, lambda slots: None]
    assert streams.ordered(steps, runners) == runners
    assert log == []


def test_who_may_run_aside() -> None:
    able = {kernel: streams.runs_aside(Step("s", kernel, (), ("y",))) for kernel in (
        "cudnn.conv", "cudnn.torch_conv", "cudnn.attention", "cublaslt.matmul", "cusparselt.matmul", "cuda.pool",
        "aten.linear")}  # fmt: skip
    assert able == {
        "cudnn.conv": True, "cudnn.torch_conv": False, "cudnn.attention": False, "cublaslt.matmul": True,
        "cusparselt.matmul": True, "cuda.pool": True, "aten.linear": False,
    }  # fmt: skip
