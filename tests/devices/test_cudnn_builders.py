"""Builders of cuDNN's plans: real processes, which find a package ``cudnn`` that is a fake."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_cudnn import FakeCudnn, FakePlan

from tamis.compiler.tactics import ahead
from tamis.compiler.tactics.ahead import PlanUnit, Unit, compile_ahead
from tamis.devices.cuda import cudnn, cudnn_builders
from tamis.devices.cuda.cudnn_builders import PlanBuilders, plan_builders
from tamis.devices.cuda.cudnn_problem import ConvProblem, Pointwise
from tamis.formats.dtype import DType
from tamis.kernels import KernelStore

# The package that the processes import: it keeps what it is told of the GPU, and its second plan cannot be built.
PACKAGE = """
import os
from fake_cudnn import FakeCudnn, FakePlan

_fake = FakeCudnn(FakePlan(), FakePlan(works=False), FakePlan(workspace=64))
__version__ = "{version}"
cudnnGraphNotSupportedError, data_type = _fake.cudnnGraphNotSupportedError, _fake.data_type
heur_mode, numerical_note = _fake.heur_mode, _fake.numerical_note
backend_version = lambda: 91900

def create_device_properties(text):
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "it would open the GPU"
    return text

def pygraph(**given):
    if "device_property" not in given or given["device_property"] != "an H200":
        raise SystemExit("no such GPU")
    if {dies}:
        os._exit(1)
    return _fake.pygraph(**given)
"""


def problem(channels: int) -> ConvProblem:
    size = (1, channels, 8, 8)
    return ConvProblem(
        size, (8, channels, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, DType.FLOAT16, True, (Pointwise("silu"),)
    )


class Shared:
    """What builders ask of a context."""

    def __init__(self, folder: Path) -> None:
        self.store, self.versions = KernelStore(folder), "cudnn 91900, frontend 1.0, a GPU"
        self.properties = "an H200"
        self.refused: dict[tuple[ConvProblem, int], str] = {}

    def refuse(self, problem: ConvProblem, rank: int, reason: str) -> None:
        self.refused[problem, rank] = reason

    def stored(self, channels: int, rank: int) -> dict | None:
        data = self.store.read(cudnn.plan_key(self.versions, problem(channels), rank), "plan")
        return None if data is None else json.loads(data)


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path / "store")


def provide(folder: Path, monkeypatch: pytest.MonkeyPatch, *, version: str = "1.0", dies: bool = False) -> None:
    package = folder / "package"
    package.mkdir()
    (package / "cudnn.py").write_text(PACKAGE.format(version=version, dies=dies))
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def builders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Shared) -> Iterator[PlanBuilders]:
    provide(tmp_path, monkeypatch)
    made = PlanBuilders(shared, 2)  # type: ignore[arg-type]
    yield made
    made.stop()


def test_plans_are_stored_and_those_that_cannot_be_are_refused(builders: PlanBuilders, shared: Shared) -> None:
    asked = [(problem(channels), rank) for channels in (8, 16, 24) for rank in (0, 1, 2)]
    threads = [threading.Thread(target=builders.build, args=pair) for pair in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for channels in (8, 16, 24):
        stored = [shared.stored(channels, rank) for rank in (0, 1)]
        assert [entry and (entry["index"], entry["workspace"]) for entry in stored] == [(0, 0), (2, 64)]
        assert shared.stored(channels, 2) is None
    assert {(p.image[1], rank) for p, rank in shared.refused} == {(8, 2), (16, 2), (24, 2)}
    assert all("offers only 2" in reason for reason in shared.refused.values())
    processes = [builder._process for builder in builders._builders]
    assert all(process is not None and process.poll() is None for process in processes), "they wait for more"
    builders.stop()
    assert all(process.poll() is not None for process in processes)


@pytest.mark.parametrize("how", ["dies", "another version", "does not start"])
def test_a_builder_that_fails_says_nothing(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Shared
) -> None:
    provide(tmp_path, monkeypatch, version="2.0" if how == "another version" else "1.0", dies=how == "dies")
    if how == "does not start":
        monkeypatch.setattr(cudnn_builders.sys, "executable", str(tmp_path / "no python"))
    builders = PlanBuilders(shared, 1)  # type: ignore[arg-type]
    for _ in range(2):
        builders.build(problem(8), 0)
    builders.stop()
    assert not shared.refused and shared.stored(8, 0) is None


def test_there_are_none_without_a_gpu_a_package_or_a_store(monkeypatch: pytest.MonkeyPatch, shared: Shared) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cudnn_builders, "context", lambda device: shared)
    with plan_builders(1) as builders:
        assert builders is not None
    store, shared.store = shared.store, None  # type: ignore[assignment]
    with plan_builders(1) as builders:
        assert builders is None
    for version in (91000, 91900):
        old = object.__new__(cudnn.Context)
        old.cudnn, old.device, old.store = FakeCudnn(FakePlan(), version=version), 0, store
        monkeypatch.setattr(cudnn_builders, "context", lambda device, old=old: old)
        with plan_builders(1) as builders:
            assert builders is None, "this cuDNN, or its package, knows nothing of properties"


def test_what_has_not_begun_is_late_and_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Shared
) -> None:
    provide(tmp_path, monkeypatch)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cudnn_builders, "context", lambda device: shared)
    monkeypatch.setattr(ahead, "compile_source", lambda *_: b"binary")
    told: list[tuple[int, int, str]] = []
    units = [Unit("gemm.cu", (), "sm_90"), PlanUnit(problem(8), 0), PlanUnit(problem(16), 1)]
    assert compile_ahead(units, float("inf"), lambda *what: told.append(what)) == frozenset()
    assert shared.stored(8, 0) and shared.stored(16, 1)
    assert sorted(name for *_, name in told) == ["a plan of cuDNN", "a plan of cuDNN", "gemm.cu"]
    assert compile_ahead([PlanUnit(problem(24), 0)], 0.0, lambda *_: None) == {PlanUnit(problem(24), 0)}
    assert shared.stored(24, 0) is None
