"""Builds for a GPU on a machine without one, from what was recorded on a machine with one.

While the code is that of the recording, nothing may be measured and the engines must be the recorded ones, to the byte.
The cubins of our own kernels come from the recording too: compilers of two versions make two binaries of one source. That
the sources compile is for ``tests/kernels`` to say.

After a change the race and the planner run on what of the recording is still asked for. Record again with
``python benchmarks/record_timing_cache.py --output tests/recorded`` on a machine with that GPU, now and then.
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
from record_timing_cache import (
    CACHE,
    KERNELS,
    OPTIONS,
    RECORD,
    built,
    code_digest,
    file_digest,
    kernel_key,
    record,
    small_model,
)
from tamis.compiler.tactics import ahead, cuda_kernels, cuda_steps
from tamis.compiler.tactics.base import Choice, Layer, Tactic
from tamis.compiler.tuner import race as race_module
from tamis.compiler.tuner.cache import Measurement
from tamis.compiler.tuner.race import Track
from tamis.compiler.tuner.suspect import Suspect
from tamis.engine import DeviceState, Engine, Plan
from tamis.engine.encoding import decode
from tamis.engine.plan import DeviceInfo, from_json, to_json
from tamis.formats.dtype import DType
from tamis.kernels.cuda import compiler_name

pytestmark = pytest.mark.usefixtures("exporter_registry")

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
    for module in (ahead, cuda_steps):
        monkeypatch.setattr(module, "compile_source", cubin)
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


def is_current(folder: Path) -> bool:
    """Whether the recording was made by the code that is tested."""
    return bool(json.loads((folder / RECORD).read_text())["code"] == code_digest())


def built_with_gaps(folder: Path, name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, list[str]]:
    """An engine from a recording that later code asks for more than it holds, and the layers that it knows nothing of.

    What was recorded counts; a candidate that was not is left out, and what nothing is known of is made up.
    """
    content = json.loads((folder / RECORD).read_text())
    made_up_layers = make_up_measurements(monkeypatch)
    made_up_race = race_module._race_now

    def race(
        layer: Layer, choices: list[tuple[Tactic, Choice]], suspects: list[Suspect], track: Track
    ) -> list[Measurement]:
        known = [track.cache.get(suspect.key) for suspect in suspects]
        if not any(known):
            return made_up_race(layer, choices, suspects, track)
        return [found or Measurement(failure="skipped: not recorded") for found in known]

    monkeypatch.setattr(race_module, "_race_now", race)
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: PaperGpu(decode(DeviceInfo, content["device"])))
    cache = place / "cache.json"
    cache.write_bytes(unpacked(folder / CACHE))
    return built(unpacked(folder / f"{name}.onnx.gz"), cache), made_up_layers


def names_in(folder: Path) -> list[str]:
    return list(json.loads((folder / RECORD).read_text())["engine_sha256"])


@pytest.mark.parametrize("folder", RECORDED or [MISSING], ids=lambda folder: getattr(folder, "name", "nothing"))
def test_recorded_measurements_make_engines(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race and the planner run on what a real GPU took, also after the code has changed."""
    if compiler_name() is None:
        pytest.skip("no CUDA compiler (NVRTC or nvcc) is installed")
    for name in names_in(folder):
        with monkeypatch.context() as patched:
            engine, unknown = built_with_gaps(folder, name, tmp_path, patched)
        layers = engine.plan.layers
        assert len(unknown) < len(layers) / 4, f"too little of the recording is of use; {AGAIN}"
        measured = [c for layer in layers for c in layer.candidates if c.timing is not None]
        assert len(measured) > 3 * len(layers)
        assert sum(record.chosen for record in engine.plan.engines) == 1
        assert {step.precision for step in engine.plan.steps} != {DType.FLOAT32}


@pytest.mark.parametrize("folder", RECORDED or [MISSING], ids=lambda folder: getattr(folder, "name", "nothing"))
def test_recorded_builds_are_built_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_current(folder):
        pytest.skip(f"the code has changed since it was recorded; to compare whole engines {AGAIN}")
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


def test_a_recording_of_older_code_still_serves(paper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(unpacked(paper / CACHE))
    (entries,) = content["devices"].values()
    gone = [
        key for key in entries if "layer: max pool" in key or '"rank": 1' in key or key.startswith(("engine", "conv"))
    ]
    for key in gone:
        del entries[key]
    for file in paper.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / CACHE).write_bytes(gzip.compress(json.dumps(content).encode()))
    assert is_current(paper)
    engine, unknown = built_with_gaps(tmp_path, "small-resnet50", tmp_path, monkeypatch)
    assert len(unknown) == 1 and len(gone) > 10
    reasons = {c.reason for layer in engine.plan.layers for c in layer.candidates}
    assert "not recorded" in reasons


def test_recordings_are_small_and_name_no_source_lines(paper: Path) -> None:
    sizes = {file.name: file.stat().st_size for file in paper.iterdir()}
    assert sizes["small-resnet50.onnx.gz"] < 700_000 and sum(sizes.values()) < 1_500_000, sizes
    assert b".py" not in unpacked(paper / "small-resnet50.onnx.gz")


def test_models_are_exported_alike(tmp_path: Path) -> None:
    assert small_model("small-mlp", tmp_path) == small_model("small-mlp", tmp_path)
    assert OPTIONS["optimization_level"] == 1
