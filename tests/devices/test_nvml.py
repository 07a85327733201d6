"""Clocks, power and heat of a GPU, as the driver's management library tells them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fake_nvml import UUID, FakeNvml

from tamis.devices.cpu import CpuDevice
from tamis.devices.cuda import nvml
from tamis.devices.cuda.device import CudaDevice
from tamis.engine import DeviceState

STATE = DeviceState(1980.0, 2619.0, 412.3, 700.0, 45.0, False, False)


def use(monkeypatch: pytest.MonkeyPatch, library: object | None) -> None:
    monkeypatch.setattr(nvml, "load_nvml", lambda: library)


def test_a_state_in_mhz_watts_and_degrees(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml())
    assert nvml.read_state() == nvml.read_state(UUID) == STATE
    assert nvml.name_and_driver() == ("NVIDIA H100 80GB HBM3", "580.159.04")


@pytest.mark.parametrize(
    ("reasons", "heat", "power"),
    [
        (0x01, False, False),  # idle
        (0x02 | 0x10 | 0x100, False, False),  # clocks that someone has set
        (0x04, False, True),
        (0x08, False, True),
        (0x20, True, False),
        (0x08 | 0x40, True, False),
        (0x08 | 0x80, False, True),
        (0x04 | 0x20, True, True),
    ],
)
def test_what_holds_the_clocks_down(monkeypatch: pytest.MonkeyPatch, reasons: int, heat: bool, power: bool) -> None:
    use(monkeypatch, FakeNvml(reasons=reasons))
    state = nvml.read_state()
    assert state is not None and (state.slowed_by_heat, state.slowed_by_power) == (heat, power)


def test_what_a_gpu_does_not_tell_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = ("ClockInfo", "PowerUsage", "EnforcedPowerLimit", "Temperature", "CurrentClocksThrottleReasons")
    use(monkeypatch, FakeNvml(reasons=0x24, silent=silent))
    assert nvml.read_state() == DeviceState(0.0, 0.0, 0.0, 0.0, 0.0, False, False)


def test_another_gpu_or_no_driver_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml())
    assert nvml.read_state("87654321-0000-0000-0000-123456789abc") is None
    use(monkeypatch, None)
    assert nvml.read_state() is None and nvml.name_and_driver() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_a_machine_without_a_driver_has_no_library() -> None:
    assert nvml.load_nvml() is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
def test_a_real_gpu_has_clocks_and_draws_power() -> None:
    state = CudaDevice().state()
    assert state is not None
    assert state.sm_mhz > 100 and state.memory_mhz > 100 and state.temperature_c > 10
    assert 5 < state.power_w <= 1.5 * state.power_limit_w


def test_devices_tell_their_own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml())
    assert CudaDevice.state(SimpleNamespace(_uuid=UUID)) == STATE  # type: ignore[arg-type]
    assert CpuDevice.state(None) is None  # type: ignore[arg-type]
