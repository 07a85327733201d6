"""Builds that go on after a candidate broke the GPU: how often, what is said, and new processes for real (on the CPU)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fragile_device import SYMPTOM, FragileDevice
from sample_engines import make_engine
from small_models import save_cnn
from tamis.compiler import STAGES, BuildConfig, BuildWarning, build, prepare, race_and_plan
from tamis.compiler.rescue import Job, Progress, go_on, run_in_new_process
from tamis.compiler.tuner.cache import Measurement, TimingCache
from tamis.devices.cpu import CpuDevice
from tamis.engine import Engine, read, save
from tamis.errors import BuildError, DeviceLost, InvalidModel

CONFIG = BuildConfig(threads=1, repetitions=3, exclude_tactics=("openvino", "tamis"))


def lost_to(name: str) -> DeviceLost:
    return DeviceLost(f"{name} broke the GPU: why", layer="fc", tactic="fast", culprit=f"key of {name}", symptom="why")


class Launcher:
    """In place of new processes: loses the device to these culprits, one a launch, and then builds the engine."""

    def __init__(self, *culprits: DeviceLost | Exception) -> None:
        self.culprits = list(culprits)
        self.jobs: list[Job] = []

    def __call__(self, job: Job, tell: Progress) -> Engine:
        self.jobs.append(job)
        if self.culprits:
            raise self.culprits.pop(0)
        return make_engine()


def go(launcher: Launcher, first: DeviceLost, config: BuildConfig = CONFIG) -> tuple[Engine, list[str], list[str]]:
    stages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = go_on(first, None, b"model", config, lambda stage, *rest: stages.append(stage), launcher)
    assert all(issubclass(w.category, BuildWarning) for w in caught)
    return engine, [str(w.message) for w in caught], stages


def test_every_culprit_is_told_once_and_the_last_process_gives_the_engine() -> None:
    launcher = Launcher(lost_to("b"), lost_to("c"))
    engine, told, stages = go(launcher, lost_to("a"))
    assert engine.plan == make_engine().plan and len(launcher.jobs) == 3
    assert "this process cannot use the GPU any more" in told[0]
    assert told[1:] == [f"layer 'fc': {name} broke the GPU: why; it is left out" for name in "abc"]
    assert stages == ["a kernel broke the GPU; going on in a new process"] * 3


def test_a_process_that_had_lost_the_gpu_before_the_build_names_nobody() -> None:
    launcher = Launcher()
    _, told, _ = go(launcher, DeviceLost("lost earlier"))
    assert len(told) == 1 and len(launcher.jobs) == 1


@pytest.mark.parametrize("again", [lost_to("a"), DeviceLost("the float32 reference broke the GPU: why")])
def test_the_same_culprit_again_or_none_ends_it(again: DeviceLost) -> None:
    launcher = Launcher(lost_to("b"), again)
    with pytest.raises(DeviceLost, match="in a new process too") as caught:
        go(launcher, lost_to("a"))
    assert len(launcher.jobs) == 2 and caught.value.remedy


def test_there_is_a_limit() -> None:
    launcher = Launcher(*(lost_to(str(number)) for number in range(100)))
    with pytest.raises(DeviceLost, match=r"15 broke the GPU: why, as 16 others did before.*xclude the tactic fast"):
        go(launcher, lost_to("a"))
    assert len(launcher.jobs) == 16


def test_other_errors_of_the_new_process_end_it() -> None:
    with pytest.raises(BuildError, match="no engine"):
        go(Launcher(BuildError("no engine")), lost_to("a"))


def test_what_was_measured_is_handed_over(tmp_path: Path) -> None:
    info, seen = CpuDevice(1).info(), []

    def launch(job: Job, tell: Progress) -> Engine:
        assert job.config.timing_cache is not None
        seen.append((job.config.timing_cache, TimingCache(job.config.timing_cache, info, 1).get("key")))
        return make_engine()

    for path in (None, tmp_path / "times.json"):
        cache = TimingCache(path, info, 1)
        cache.put("key", Measurement(failure="failed: broke the GPU: why"))
        cache.save()
        with pytest.warns(BuildWarning):
            go_on(lost_to("a"), cache, b"", replace(CONFIG, timing_cache=path), lambda *progress: None, launch)
    assert [found for _, found in seen] == [Measurement(failure="failed: broke the GPU: why")] * 2
    assert seen[1][0] == tmp_path / "times.json" and not seen[0][0].exists()


def test_a_new_process_reads_models_with_external_data(tmp_path: Path) -> None:
    path = save_cnn(tmp_path / "inside.onnx")
    onnx.save(onnx.load(path), tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    image = np.ones((2, 4, 8, 8), np.float32)
    config = replace(CONFIG, timing_cache=tmp_path / "times.json", samples={"image": image})
    stages: list[str] = []
    job = Job(Path(os.path.relpath(tmp_path / "model.onnx")), config, tmp_path / "engine.tamis")
    engine = run_in_new_process(job, lambda stage, *rest: stages.append(stage))
    assert tuple(dict.fromkeys(stages)) == STAGES
    # All that it measured is in the cache: this process comes to the same bytes.
    save(build(tmp_path / "model.onnx", config), tmp_path / "here.tamis")
    save(engine, tmp_path / "there.tamis")
    assert (tmp_path / "here.tamis").read_bytes() == (tmp_path / "there.tamis").read_bytes()


def test_errors_come_back_from_a_new_process_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel) as here:
        build(tmp_path / "none.onnx", CONFIG)
    with pytest.raises(InvalidModel) as there:
        run_in_new_process(Job(tmp_path / "none.onnx", CONFIG, tmp_path / "engine.tamis"), lambda *progress: None)
    assert str(there.value) == str(here.value) and there.value.remedy == here.value.remedy


def test_a_process_that_dies_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho the driver is gone >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(BuildError, match="exit code 3: the driver is gone"):
        run_in_new_process(Job(b"", CONFIG, tmp_path / "engine.tamis"), lambda *progress: None)


def test_a_whole_engine_that_breaks_the_gpu_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, timing_cache=tmp_path / "times.json", exclude_tactics=("tamis",))
    model = save_cnn(tmp_path / "model.onnx")
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: FragileDevice(arena=True))
    with pytest.raises(DeviceLost, match=r"an engine of . steps broke the GPU") as first:
        race_and_plan(*prepare(model, config, lambda *progress: None), lambda *progress: None)
    assert first.value.culprit
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: FragileDevice())
    assert [record.name for record in build(model, config).plan.engines] == ["openvino float32 dense"]
    alone = replace(config, exclude_tactics=("tamis", "openvino"))  # and when no other is left
    with pytest.raises(BuildError, match=f"no engine can be used: one failed: broke the GPU: {SYMPTOM}"):
        build(model, alone)


@pytest.mark.parametrize("run", [0, 1, 4])
def test_a_region_that_breaks_the_gpu_is_left_out(run: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, timing_cache=tmp_path / "times.json", exclude_tactics=("tamis",))
    model = save_cnn(tmp_path / "model.onnx")
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: FragileDevice("openvino", run))
    with pytest.raises(DeviceLost, match="openvino") as caught:
        race_and_plan(*prepare(model, config, lambda *progress: None), lambda *progress: None)
    assert caught.value.tactic == "openvino" and caught.value.layer
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: FragileDevice())
    reasons = [region.reason for region in build(model, config).plan.regions]
    assert reasons.count(f"failed: broke the GPU: {SYMPTOM}") == 1


# No guard against being imported: were it run again in the new process, "runs" would have two lines.
SCRIPT = f"""
import json, sys, warnings
from pathlib import Path
import onnx
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
with open("runs", "a") as runs:
    runs.write("run\\n")
from fragile_device import FragileDevice
import tamis
import tamis.compiler
tamis.compiler.open_device = lambda kind: FragileDevice("onednn")
stages = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", tamis.compiler.BuildWarning)
    tamis.build(
        onnx.load("model.onnx"), output="engine.tamis", progress=lambda stage, *rest: stages.append(stage), threads=1,
        repetitions=3, exclude_tactics=("openvino", "tamis"), timing_cache=Path("times.json"),
    )
told = [str(w.message) for w in caught if w.category is tamis.compiler.BuildWarning]
print(json.dumps([told, list(dict.fromkeys(stages))]))
"""


def test_a_build_survives_a_candidate_that_breaks_the_gpu(tmp_path: Path) -> None:
    """The whole way, in a script as users write it. Only there is the device fragile, not in the new process."""
    save_cnn(tmp_path / "model.onnx")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, stages = json.loads(done.stdout)
    assert (tmp_path / "runs").read_text() == "run\n"
    assert len(told) == 2 and "this process cannot use the GPU" in told[0] and "onednn" in told[1], told
    restart = stages.index("a kernel broke the GPU; going on in a new process")
    assert "race" in stages[:restart] and "save" in stages[restart:]

    layers = read(tmp_path / "engine.tamis").plan.layers
    reason = f"failed: broke the GPU: {SYMPTOM}"
    broken = [(layer.name, c.tactic, c.status) for layer in layers for c in layer.candidates if c.reason == reason]
    assert len(broken) == 1 and broken[0][1:] == ("onednn", "disqualified")
    assert f"layer '{broken[0][0]}'" in told[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", BuildWarning)
        config = replace(CONFIG, timing_cache=tmp_path / "times.json")
        save(build(onnx.load(tmp_path / "model.onnx"), config), tmp_path / "again.tamis")
    assert (tmp_path / "again.tamis").read_bytes() == (tmp_path / "engine.tamis").read_bytes()
