"""NVTX ranges: one around each step, named after its layers and kernel, in every way to run a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sample_engines import FakeDevice, make_engine, reference
from tamis.cli.main import run_command
from tamis.devices.base import Ranges, Runner, Slots
from tamis.devices.cuda.device import CudaDevice
from tamis.engine import Step, save
from tamis.errors import ConfigError
from tamis.runtime import EngineWarning, Session, profile, step_kernels
from tamis.runtime.ranges import range_name

X = np.arange(8, dtype=np.float32).reshape(2, 4)
NAMES = ("scale [fake.scale]", "double [fake.add]", "add [fake.add]")


class RangedDevice(FakeDevice):
    """A device with graphs, whose ranges, steps and recordings go to one list."""

    replays = True

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def ranges(self) -> Ranges:  # type: ignore[override]
        return torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop

    def bind(self, step: Step, *rest: object) -> Runner:  # type: ignore[override]
        runner = super().bind(step, *rest)  # type: ignore[arg-type]

        def run(slots: Slots) -> None:
            self.events.append(f"ran {step.name}")
            runner(slots)

        return run

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.events.append("recorded")
        run()
        return run

    def part_timer(self, parts: object, *, recorded: bool = True) -> Callable[[], list[float]]:  # type: ignore[override]
        if recorded:
            self.events.append("recorded")
        return super().part_timer(parts)  # type: ignore[arg-type]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> RangedDevice:
    device = RangedDevice()
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: device.events.append(f"push {name}"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: device.events.append("pop"))
    return device


@pytest.fixture
def session(device: RangedDevice) -> Session:
    with pytest.warns(EngineWarning, match="runs step by step, not as a graph"):
        return Session(make_engine(), device=device, nvtx=True)


def one_run() -> list[str]:
    events = []
    for name in NAMES:
        events += [f"push {name}", f"ran {name.split()[0]}", "pop"]
    return events


def test_every_run_pushes_a_range_for_each_step(session: Session, device: RangedDevice) -> None:
    for factor in (1, -2):
        device.events.clear()
        np.testing.assert_array_equal(session.run([factor * X])["out"], reference(factor * X))
        assert device.events == one_run()


def test_bound_runs_push_them_too(session: Session, device: RangedDevice) -> None:
    mine = torch.from_numpy(X.copy())
    launch = session.bind([mine])
    for _ in range(2):
        device.events.clear()
        np.testing.assert_array_equal(launch()[0].numpy(), reference(mine.numpy()))
        assert device.events == one_run()
        mine.add_(1)


def test_profiles_run_step_by_step(session: Session, device: RangedDevice) -> None:
    profile(session, [X], runs=3, warmup_ms=0)
    step_kernels(session, [X])
    assert "recorded" not in device.events
    assert device.events == one_run() * (len(device.events) // len(one_run()))


def test_without_the_option_runs_are_recorded_and_nothing_is_pushed(device: RangedDevice) -> None:
    session = Session(make_engine(), device=device)
    session.run([X])
    profile(session, [X], runs=3, warmup_ms=0)
    assert "recorded" in device.events and not {"pop"} & set(device.events)


def test_a_step_that_fails_closes_its_range(device: RangedDevice) -> None:
    def bind(step: Step, *rest: object) -> Runner:
        def run(slots: Slots) -> None:
            raise RuntimeError("broken")

        return run

    device.bind = bind  # type: ignore[method-assign, assignment]
    with pytest.warns(EngineWarning):
        session = Session(make_engine(), device=device, nvtx=True)
    with pytest.raises(RuntimeError, match="broken"):
        session.run([X])
    assert device.events == [f"push {NAMES[0]}", "pop"]


def test_the_gpus_ranges_are_those_of_nvtx(device: RangedDevice) -> None:
    push, pop = CudaDevice.ranges(device)  # type: ignore[misc, arg-type]
    push("conv1 [cudnn.conv]")
    pop()
    assert device.events == ["push conv1 [cudnn.conv]", "pop"]


def test_names_of_steps() -> None:
    step = Step("s", "cudnn.conv", (), (), layers=("conv1", "relu1"))
    assert range_name(step) == "conv1, relu1 [cudnn.conv]"
    assert range_name(replace(step, layers=())) == "s [cudnn.conv]"
    assert range_name(replace(step, layers=("a", "b", "c", "d"))) == "a .. d (4 layers) [cudnn.conv]"


def test_a_device_without_ranges_says_so() -> None:
    with pytest.raises(ConfigError, match="no NVTX ranges on the device 'cpu'"):
        Session(make_engine(), device=FakeDevice(), nvtx=True)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("command", [("profile", "--runs", "3"), ("bench", "--duration", "0", "--warmup", "0")])
def test_the_commands_pass_the_option_on(
    command: tuple[str, ...],
    device: RangedDevice,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(make_engine(), tmp_path / "m.tamis")
    monkeypatch.setattr("tamis.runtime.session.open_device", lambda kind: device)
    name, *options = command
    assert run_command([name, str(tmp_path / "m.tamis"), "--nvtx", *options]) == 0
    captured = capsys.readouterr()
    assert "warning: the engine runs step by step" in captured.err
    assert f"push {NAMES[0]}" in device.events and "recorded" not in device.events
