"""Clocks and power in the plan: of the build that measured, and the same again from the timing cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from small_models import save_cnn, save_mlp
from tamis import read_engine, save_engine
from tamis.compiler import BuildConfig, build
from tamis.devices.cpu import CpuDevice
from tamis.engine import Conditions, DeviceState, Engine

COLD = DeviceState(345.0, 2619.0, 70.1, 700.0, 30.0, False, False)


class TellingDevice(CpuDevice):
    """A CPU that tells a state which changes with every question."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked = 0

    def state(self) -> DeviceState | None:  # type: ignore[override]
        self.asked += 1
        return replace(COLD, temperature_c=COLD.temperature_c + self.asked, slowed_by_power=self.asked % 2 == 0)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> TellingDevice:
    device = TellingDevice()
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: device)
    return device


def made(model: Path, cache: Path | None, **options: object) -> Engine:
    fast = BuildConfig(threads=1, optimization_level=0, timing_cache=cache, exclude_tactics=("openvino", "tamis"))
    return build(model, replace(fast, **options))  # type: ignore[arg-type]


def test_a_build_notes_the_state_before_and_after(device: TellingDevice, tmp_path: Path) -> None:
    engine = made(save_mlp(tmp_path / "mlp.onnx"), None)
    expected = Conditions(replace(COLD, temperature_c=31.0), replace(COLD, temperature_c=32.0, slowed_by_power=True))
    assert engine.plan.conditions == expected
    save_engine(engine, tmp_path / "mlp.tamis")
    assert read_engine(tmp_path / "mlp.tamis").plan.conditions == expected


def test_builds_that_measure_nothing_keep_the_state_of_the_one_that_did(device: TellingDevice, tmp_path: Path) -> None:
    models = save_mlp(tmp_path / "mlp.onnx"), save_cnn(tmp_path / "cnn.onnx")
    cache = tmp_path / "cache.json"
    first = [made(model, cache) for model in models]
    again = [made(model, cache) for model in models]
    assert [e.plan.conditions for e in first] == [e.plan.conditions for e in again]
    assert first[0].plan.conditions != first[1].plan.conditions  # the second model's did not replace the first's
    for name, engine in zip("abcd", (*first, *again), strict=True):
        save_engine(engine, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()
    assert (tmp_path / "b").read_bytes() == (tmp_path / "d").read_bytes()
    # Another option that measures nothing new finds them too.
    assert made(models[0], cache, budget_seconds=100.0).plan.conditions == first[0].plan.conditions


def test_a_cache_from_elsewhere_without_a_state_gives_none(
    device: TellingDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, cache = save_mlp(tmp_path / "mlp.onnx"), tmp_path / "cache.json"
    with monkeypatch.context() as silent:
        silent.setattr(TellingDevice, "state", lambda self: None)
        assert made(model, cache).plan.conditions is None
    assert made(model, cache).plan.conditions is None  # nothing is measured now, so now does not count
