"""The clock: turns, warm-ups, spread, and what counts as faster."""

from __future__ import annotations

import pytest

from tamis.compiler.tuner.timing import Clock, Contender, summarise
from tamis.devices.cpu import stopwatch
from tamis.devices.cpu.device import CpuDevice
from tamis.engine.noise import beats
from tamis.engine.plan import Timing


def timing(median: float, p10: float) -> Timing:
    return Timing(median, p10, median * 1.5, 15)


def test_summary_interpolates() -> None:
    assert summarise([1.0, 2.0, 3.0, 4.0, 5.0]) == Timing(3.0, 1.4, 4.6, 5)
    assert summarise([7.0]) == Timing(7.0, 7.0, 7.0, 1)


@pytest.mark.parametrize(
    "challenger, holder, expected",
    [
        (timing(90, 80), timing(100, 95), True),
        (timing(98, 80), timing(100, 95), False),  # the medians are too close
        (timing(50, 94), timing(100, 95), False),  # a busy machine spoiled half of the holder's turns
        (timing(100, 95), timing(100, 95), False),
    ],
)
def test_a_winner_is_ahead_in_the_median_and_at_the_fast_end(
    challenger: Timing, holder: Timing, expected: bool
) -> None:
    assert beats(challenger, holder) is expected


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    contenders = {name: Contender(lambda name=name: calls.append(name)) for name in "ab"}
    result = Clock(CpuDevice(), cold=False).race(contenders, 4)
    assert calls == ["a", "b"] * 5  # one untimed turn, four timed ones
    assert result["b"].n == 4


COLD_NS, WARM_NS, WARM_AFTER = 900_000, 250_000, 8


class Machine:
    """Time passes only where something sleeps or runs; the first runs after a pause are slow."""

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
def machine(usual_stopwatch: None, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(stopwatch, "time", made)
    return made


def test_a_whole_engine_is_timed_warm_and_at_rest(machine: Machine) -> None:
    """Neither the pause nor the first calls after it count; a short engine is timed in a burst."""
    elapsed_us = Clock(CpuDevice(), cold=False).once(Contender(machine.run, settle=True))
    assert elapsed_us == WARM_NS / 1e3
    running = WARM_AFTER * COLD_NS + (machine.runs - WARM_AFTER) * WARM_NS
    assert machine.now - running > 15_000_000  # for so long OpenMP's workers spin
    assert running >= 11_000_000  # ten milliseconds to get warm, and one that counts


@pytest.mark.parametrize("cold", [False, True])
def test_a_part_is_timed_in_one_call_without_what_empties_the_caches(machine: Machine, cold: bool) -> None:
    assert Clock(CpuDevice(), cold=cold).once(Contender(machine.run)) == COLD_NS / 1e3
    assert machine.runs == 1


def test_a_deadline_still_allows_three_turns() -> None:
    result = Clock(CpuDevice(), cold=False).race({"a": Contender(lambda: None)}, 50, deadline=0.0)
    assert result["a"].n == 3
