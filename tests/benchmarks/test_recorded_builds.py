"""Builds for a GPU on a machine without one, from what was recorded on a machine with one.

Nothing may be measured, and the engines must be the recorded ones, to the byte. The cubins of our own kernels come from
the recording too: compilers of two versions make two binaries of one source, and the machine that runs this test may
have none. That the sources compile is for ``tests/kernels`` to say.

A change to tactics, passes, planner or plan asks for other measurements, and then these tests fail: record again with
``python benchmarks/record_timing_cache.py --output tests/recorded`` on a machine with that GPU.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from paper_gpu import H200, PaperGpu, make_up_measurements
from record_timing_cache import CACHE, KERNELS, OPTIONS, RECORD, built, file_digest, kernel_key, record, small_model
from tamis.compiler.tactics import cuda_kernels, cuda_steps
from tamis.engine import DeviceState, Engine, Plan
from tamis.engine.encoding import decode
from tamis.engine.plan import DeviceInfo, from_json, to_json
from tamis.kernels.cuda import compiler_name

AGAIN = "record again: python benchmarks/record_timing_cache.py --output tests/recorded"
FOLDER = Path(__file__).parents[1] / "recorded"
RECORDED = [path.parent for path in sorted(FOLDER.glob(f"*/{RECORD}"))]
MISSING = pytest.param(None, marks=pytest.mark.skip(reason=f"nothing was recorded yet in tests/recorded; {AGAIN}"))
HOT = DeviceState(1980.0, 2619.0, 412.3, 700.0, 45.0, False, True)


class RefusingGpu(PaperGpu):
    """A GPU on paper that fails the test when it is asked to hold, run or time anything."""

    def __init__(self, info: DeviceInfo, cache_bytes: int) -> None:
        super().__init__(info)
        self.cache_bytes = cache_bytes  # type: ignore[misc]

    def _refuse(self, *arguments: object, **named: object) -> Any:
        pytest.fail(f"something is measured that the recording lacks; {AGAIN}")

    bind = empty = arena = view = upload = download = stage = record = part_timer = time_us = _refuse

    def stopwatch(self, *, cold: bool) -> Any:
        return self


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def built_again(folder: Path, name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, Plan]:
    """An engine made from a recording alone, and the recorded plan."""
    content = json.loads((folder / RECORD).read_text())
    recorded = from_json(unpacked(folder / f"{name}.plan.json.gz").decode())
    gpu = RefusingGpu(decode(DeviceInfo, content["device"]), content["cache_bytes"])
    archive = zipfile.ZipFile(folder / KERNELS)

    def cubin(source: str, defines: Mapping[str, str | int | float], architecture: str) -> bytes:
        key = kernel_key(source, defines, architecture)
        if key not in archive.namelist():
            pytest.fail(f"a kernel of {source} is compiled that the recording lacks; {AGAIN}")
        return archive.read(key)

    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: gpu)
    monkeypatch.setattr(cuda_steps, "compile_source", cubin)
    for module in (cuda_steps, cuda_kernels):
        monkeypatch.setattr(module, "compiler_name", lambda: content["compiler"])
    monkeypatch.setattr("tamis.compiler.planner.plan.__version__", recorded.tamis)  # it is part of the cache's keys
    cache = place / "cache.json"
    cache.write_bytes(unpacked(folder / CACHE))
    engine = built(unpacked(folder / f"{name}.onnx.gz"), cache)
    assert cache.read_bytes() == unpacked(folder / CACHE), "something was added to the timing cache"
    return engine, recorded


def assert_equal(engine: Engine, recorded: Plan, folder: Path, name: str) -> None:
    """First what a reader can make sense of, then everything."""
    plan = engine.plan
    chosen, wanted = ([(r.name, r.chosen_tactic, r.chosen_precision, r.chosen_sparsity) for r in p.layers]
                      for p in (plan, recorded))  # fmt: skip
    assert chosen == wanted
    assert [(s.name, s.kernel) for s in plan.steps] == [(s.name, s.kernel) for s in recorded.steps]
    assert plan.steps == recorded.steps
    assert plan.conditions == recorded.conditions
    assert to_json(plan) == to_json(recorded)
    assert file_digest(engine) == json.loads((folder / RECORD).read_text())["engine_sha256"][name]


def names_in(folder: Path) -> list[str]:
    return list(json.loads((folder / RECORD).read_text())["engine_sha256"])


@pytest.mark.parametrize("folder", RECORDED or [MISSING], ids=lambda folder: getattr(folder, "name", "nothing"))
def test_recorded_builds_are_built_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_in(folder)
    assert len(names) == 2
    for name in names:
        with monkeypatch.context() as patched:
            assert_equal(*built_again(folder, name, tmp_path, patched), folder, name)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of made-up measurements, by the same code that records real ones."""
    if compiler_name() is None:
        pytest.skip("no CUDA compiler (NVRTC or nvcc) is installed")
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patched:
        make_up_measurements(patched)
        patched.setattr(PaperGpu, "state", lambda self: HOT)
        patched.setattr("tamis.compiler.open_device", lambda kind: PaperGpu(H200))
        record(folder, PaperGpu(H200), ("small-mlp", "small-resnet50"))
    return folder


@pytest.mark.parametrize("name", ["small-mlp", "small-resnet50"])
def test_a_recording_on_paper_is_built_again(
    paper: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, recorded = built_again(paper, name, tmp_path, monkeypatch)
    assert_equal(engine, recorded, paper, name)
    assert recorded.conditions is not None and recorded.conditions.after == HOT
    if name == "small-resnet50":  # the MLP is so small that dense layers win it
        assert {step.sparsity for step in recorded.steps} == {"dense", "2:4"}
        assert any(step.kernel.startswith("cuda.") for step in recorded.steps)


def test_a_recording_that_lacks_something_fails(paper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(unpacked(paper / CACHE))
    (entries,) = content["devices"].values()
    lost = next(key for key in entries if key.startswith("warm layer: Linear"))
    del entries[lost]
    for file in paper.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / CACHE).write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(pytest.fail.Exception, match="record again"):
        built_again(tmp_path, "small-mlp", tmp_path, monkeypatch)


def test_recordings_are_small_and_name_no_source_lines(paper: Path) -> None:
    sizes = {file.name: file.stat().st_size for file in paper.iterdir()}
    assert sizes["small-resnet50.onnx.gz"] < 700_000 and sum(sizes.values()) < 1_500_000, sizes
    assert b".py" not in unpacked(paper / "small-resnet50.onnx.gz")


def test_models_are_exported_alike(tmp_path: Path) -> None:
    assert small_model("small-mlp", tmp_path) == small_model("small-mlp", tmp_path)
    assert OPTIONS["optimization_level"] == 1
