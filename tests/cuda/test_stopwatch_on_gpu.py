"""The GPU's stopwatch: what it measures is the GPU's time, however long the host takes to launch."""

from __future__ import annotations

import time

import pytest
import torch

from tamis.devices.cuda.stopwatch import CudaStopwatch


@pytest.mark.parametrize("cold", [False, True])
def test_a_slow_host_is_not_measured(cold: bool) -> None:
    tensor, stopwatch = torch.ones(1 << 20, device="cuda"), CudaStopwatch(cold=cold)

    def quick() -> None:
        tensor.mul_(1.0)

    def slow() -> None:
        time.sleep(0.002)
        tensor.mul_(1.0)

    usual = min(stopwatch.time_us(quick) for _ in range(10))
    for _ in range(3):
        assert stopwatch.time_us(slow) < 10 * usual + 20 < 1000


def test_the_wait_becomes_short_again() -> None:
    stopwatch = CudaStopwatch(cold=False)
    stopwatch.time_us(lambda: time.sleep(0.005))
    start = time.perf_counter()
    for _ in range(40):
        stopwatch.time_us(lambda: None)
    lasted = []
    for _ in range(10):  # of which others on the machine may disturb some
        last = time.perf_counter()
        stopwatch.time_us(lambda: None)
        lasted.append(time.perf_counter() - last)
    assert min(lasted) < 0.002
    assert last - start < 0.5


def test_a_call_that_waits_for_the_gpu_ends() -> None:
    stopwatch = CudaStopwatch(cold=False)
    assert stopwatch.time_us(torch.cuda.synchronize) >= 0


def test_an_engine_is_timed_in_bursts() -> None:
    """Two buffers that do not fit into the L2 cache together, but each alone: the call's own is there."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    mine, other = (torch.ones(l2 // 8, device="cuda") for _ in range(2))  # half of it each
    stopwatch, calls = CudaStopwatch(cold=False), []

    def run() -> None:
        calls.append(1)
        mine.mul_(1.0)

    def after_another(*, alone: bool) -> float:
        torch.cat([other] * 4).sum()
        return stopwatch.time_us(run, alone=alone)

    singles = sorted(after_another(alone=False) for _ in range(9))
    calls.clear()
    bursts = sorted(after_another(alone=True) for _ in range(9))
    assert len(calls) > 9 * 20
    assert bursts[4] < singles[4]


def test_a_long_engine_runs_few_times() -> None:
    stopwatch, calls = CudaStopwatch(cold=False), []

    def run() -> None:
        calls.append(1)
        torch.cuda._sleep(8_000_000)

    assert 2_000 < stopwatch.time_us(run, alone=True) < 20_000
    assert len(calls) <= 6
