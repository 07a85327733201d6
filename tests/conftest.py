"""Makes the helpers in this folder importable from all tests, and what many of them share.

Where several processes run the tests (``pytest -n``), each keeps to one core and so builds and runs with one thread:
threads that wait for each other wait for whole time slices where others want the cores too. Tests of threads name
their number.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest

# What the tests compile is compiled, whatever lies in the cache of who runs them.
os.environ.setdefault("TAMIS_KERNEL_CACHE", "off")

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
if WORKER and CORES:
    os.sched_setaffinity(0, {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]})


@pytest.fixture
def all_cores() -> Iterator[None]:
    """The threads that the test starts may run on all cores, and so at one time."""
    if not CORES:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    yield
    os.sched_setaffinity(0, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no process begins a long one when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def quick_stopwatch() -> Iterator[dict[str, float]]:
    """Whole engines are timed without the pause and the warm-up before, in single runs; yields the usual values.

    Which of them is faster is no test's subject. Builds in processes of their own (documentation) measure as users do.
    """
    from tamis.devices.cpu import stopwatch

    usual = {name: getattr(stopwatch, name) for name in ("_SETTLE_SECONDS", "_WARM_NS", "_BURST_NS")}
    with pytest.MonkeyPatch.context() as patch:
        for name in usual:
            patch.setattr(stopwatch, name, 0)
        yield usual


@pytest.fixture
def usual_stopwatch(quick_stopwatch: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are timed as users time them."""
    for name, value in quick_stopwatch.items():
        monkeypatch.setattr(f"tamis.devices.cpu.stopwatch.{name}", value)


@pytest.fixture(scope="session")
def exporter_registry() -> Iterator[None]:
    """PyTorch's exporter collects the operators that it knows once, not anew for each of our small exports."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        collect = functools.cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):  # another PyTorch, which may well do better
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(collect))
        yield


@pytest.fixture
def no_cuda_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without NVRTC and nvcc: what libraries leave of an epilogue falls to PyTorch."""
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compiler_name", lambda: None)
