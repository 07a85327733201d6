"""The clock: turns, warm-ups, spread, and what counts as faster."""

from __future__ import annotations

import time

import pytest

from tamis.compiler.tuner.timing import Clock, Contender, beats, summarise
from tamis.devices.cpu.device import CpuDevice
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


def test_a_whole_engine_is_timed_warm_and_at_rest() -> None:
    """Neither the pause nor the first calls after it count; a short engine is timed in a burst."""
    start, calls = time.perf_counter(), 0

    def slow_at_first() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            time.sleep(0.05)

    elapsed_us = Clock(CpuDevice(), cold=False).once(Contender(slow_at_first, settle=True))
    assert time.perf_counter() - start > 0.02
    assert calls > 100
    assert elapsed_us < 100


def test_a_deadline_still_allows_three_turns() -> None:
    result = Clock(CpuDevice(), cold=False).race({"a": Contender(lambda: None)}, 50, deadline=0.0)
    assert result["a"].n == 3
