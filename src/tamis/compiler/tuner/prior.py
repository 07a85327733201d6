"""The roofline prior: how fast a layer could be at the very best on this device.

Two numbers of the device are measured once and kept in the timing cache: the arithmetic rate of a large
matrix product in each precision, and the bandwidth of a large copy. A candidate whose lower bound is far
above what another candidate already reached is not measured.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tamis.compiler.tuner.cache import Measurement, TimingCache
from tamis.formats.dtype import DType

_TORCH = {DType.FLOAT32: torch.float32, DType.BFLOAT16: torch.bfloat16}
# Library kernels on other shapes may run above the rate of the probe; a bound must stay a bound.
_HEADROOM = 1.5


@dataclass(frozen=True)
class Roof:
    """Measured ceilings: floating-point operations a microsecond by precision, and bytes a microsecond."""

    flops_per_us: dict[DType, float]
    bytes_per_us: float

    def bound_us(self, flops: int, moved_bytes: int, precision: DType) -> float:
        """A time that no implementation will beat, even with all of the traffic in the nearest cache."""
        arithmetic = flops / (self.flops_per_us[precision] * _HEADROOM)
        return max(arithmetic, moved_bytes / (self.bytes_per_us * _HEADROOM * 4))


def measure_roof(cache: TimingCache, precisions: tuple[DType, ...]) -> Roof:
    """The device's ceilings, from the timing cache or measured now (a few hundred milliseconds)."""
    rates = {}
    for precision in precisions:
        key = f"roof: matrix product in {precision}"
        rates[precision] = _number(cache, key, functools.partial(_product_rate, precision))
    return Roof(rates, _number(cache, "roof: copy", _copy_rate))


def _number(cache: TimingCache, key: str, measure: Callable[[], float]) -> float:
    found = cache.get(key)
    if found is None or found.number is None:
        found = cache.put(key, Measurement(number=round(measure(), 3)))
    assert found.number is not None
    return found.number


def _best_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(6):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _product_rate(precision: DType) -> float:
    size = 1024
    a, b = torch.randn(size, size).to(_TORCH[precision]), torch.randn(size, size).to(_TORCH[precision])
    return 2 * size**3 / _best_seconds(lambda: a @ b) / 1e6


def _copy_rate() -> float:
    source = torch.randn(16 << 20)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source)) / 1e6
