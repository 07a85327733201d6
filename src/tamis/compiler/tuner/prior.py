"""The roofline prior: how fast a layer could be at the very best on this device.

Two numbers of the device are measured once and kept in the timing cache: the arithmetic rate of a large
matrix product in each precision, and the bandwidth of a large copy. A candidate whose lower bound is far
above what another candidate already reached is not measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tamis.compiler.tuner.cache import Measurement, TimingCache
from tamis.devices.base import Device
from tamis.engine.plan import Format
from tamis.formats.dtype import DType

# Sides of the largest square matrices, and elements of the copy, that show what a device can do.
_PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
_COPY_ELEMENTS = {"cpu": 16 << 20, "cuda": 512 << 20}
# Matrices start smaller than the largest by this factor and double, until the next product would take this long: a
# processor without instructions for a precision may take seconds for the largest.
_FIRST_PRODUCT = 8
_LONG_PRODUCT_US = 50_000.0
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


def measure_roof(cache: TimingCache, device: Device, precisions: tuple[DType, ...]) -> Roof:
    """The device's ceilings, from the timing cache, from an earlier build of this process, or measured now.

    Measuring takes a few hundred milliseconds.
    """
    rates: dict[DType, float] = {}
    for precision in sorted(precisions, key=lambda p: p != DType.FLOAT32):
        key = f"roof: matrix product in {precision}"
        rate = _number(cache, device, key, functools.partial(_product_rate, device, precision))
        # Whoever has no instructions for a precision can convert and use those of float32, as other kernels than the
        # one measured here may do: a bound must stay a bound.
        rates[precision] = max(rate, rates.get(DType.FLOAT32, 0.0))
    return Roof(rates, _number(cache, device, "roof: copy", functools.partial(_copy_rate, device)))


# What this process has measured, by device and threads.
_MEASURED: dict[tuple[str, ...], float] = {}


def _number(cache: TimingCache, device: Device, key: str, measure: Callable[[], float]) -> float:
    found = cache.get(key)
    if found is None or found.number is None:
        here = (str(device.info()), str(torch.get_num_threads()), key)
        if here not in _MEASURED:
            _MEASURED[here] = round(measure(), 3)
        found = cache.put(key, Measurement(number=_MEASURED[here]))
    assert found.number is not None
    return found.number


def _best_us(device: Device, call: Callable[[], object]) -> float:
    stopwatch = device.stopwatch(cold=False)
    return min(stopwatch.time_us(call, warmups=1) for _ in range(5))


def _product_rate(device: Device, precision: DType) -> float:
    largest = _PRODUCT_SIZE[device.info().kind]
    # Products of tf32 run at half the rate of bfloat16; PyTorch's own switch for them is global, so it stays alone.
    halved = precision == DType.TF32
    format = Format(DType.BFLOAT16 if halved else precision)
    best, size, us = 0.0, largest // _FIRST_PRODUCT, 0.0
    while size <= largest and 8 * us < _LONG_PRODUCT_US:
        operand = device.empty((size, size), format).normal_()
        us = _best_us(device, functools.partial(torch.matmul, operand, operand))
        best, size = max(best, 2 * size**3 / us), 2 * size
    return best / 2 if halved else best


def _copy_rate(device: Device) -> float:
    elements = _COPY_ELEMENTS[device.info().kind]
    source, target = (device.empty((elements,), Format()) for _ in range(2))
    source.fill_(0.5)
    return 2 * 4 * elements / _best_us(device, lambda: target.copy_(source))
