"""The CPU's stopwatch, on a clock of our own."""

from __future__ import annotations

import pytest

from tamis.devices.cpu import stopwatch as module
from tamis.devices.cpu.stopwatch import CpuStopwatch

COLD_NS, WARM_NS, WARM_AFTER = 900_000, 250_000, 8


class Machine:
    """Time passes only when something sleeps or runs; the first runs after a pause are slow."""

    def __init__(self) -> None:
        self.now = 0
        self.runs = 0

    def perf_counter_ns(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)
        self.runs = 0

    def run(self) -> None:
        self.now += COLD_NS if self.runs < WARM_AFTER else WARM_NS
        self.runs += 1


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.mark.usefixtures("usual_stopwatch")
def test_an_engine_alone_is_timed_after_a_pause_when_it_is_warm_over_many_runs(machine: Machine) -> None:
    assert CpuStopwatch(cold=False).time_us(machine.run, alone=True) == WARM_NS / 1e3
    assert machine.now >= 20_000_000 + WARM_AFTER * COLD_NS  # OpenMP's workers spin for 15 ms
    assert machine.runs >= WARM_AFTER + 4


def test_a_part_is_timed_once_after_its_warm_ups(machine: Machine) -> None:
    assert CpuStopwatch(cold=False).time_us(machine.run, warmups=WARM_AFTER) == WARM_NS / 1e3
    assert machine.runs == WARM_AFTER + 1


def test_a_cold_stopwatch_does_not_time_what_empties_the_caches(machine: Machine) -> None:
    assert CpuStopwatch(cold=True).time_us(machine.run) == COLD_NS / 1e3
