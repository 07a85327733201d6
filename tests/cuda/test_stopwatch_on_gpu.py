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
    last = time.perf_counter()
    stopwatch.time_us(lambda: None)
    assert time.perf_counter() - last < 0.002
    assert last - start < 0.5


def test_a_call_that_waits_for_the_gpu_ends() -> None:
    stopwatch = CudaStopwatch(cold=False)
    assert stopwatch.time_us(torch.cuda.synchronize) >= 0
