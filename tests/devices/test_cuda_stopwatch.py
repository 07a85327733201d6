"""How often the GPU's stopwatch runs what it times; that it measures the GPU's time is tests/cuda's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from tamis.devices.cuda.stopwatch import CudaStopwatch


class Played(CudaStopwatch):
    """A GPU on which a run takes ``us``, and the first one behind another engine's twice as long."""

    def __init__(self, us: float) -> None:
        self._us, self._head_start, self.runs, self.measured = us, 200_000, 0, 0

    def run(self) -> None:
        self.runs += 1

    def _measure(self, call: Callable[[], object], warm: Sequence[torch.Tensor]) -> tuple[float, float]:
        before = self.runs
        call()
        self.measured += 1
        return self._us * (self.runs - before + (before == 0)), 10.0


@pytest.mark.parametrize(("us", "runs"), [(100.0, 1 + 10 + 10), (3000.0, 2), (2.0, 1 + 200 + 200)])
def test_an_engine_is_timed_as_it_runs_again_and_again(us: float, runs: int) -> None:
    stopwatch = Played(us)
    assert stopwatch.time_us(stopwatch.run, alone=True) == pytest.approx(us)
    assert (stopwatch.runs, stopwatch.measured) == (runs, 2)


def test_a_layer_is_timed_by_one_call() -> None:
    stopwatch = Played(100.0)
    assert stopwatch.time_us(stopwatch.run) == pytest.approx(200.0)
    assert stopwatch.runs == 1
    assert stopwatch.time_us(stopwatch.run, warmups=3) == pytest.approx(100.0)
    assert stopwatch.runs == 5
