"""Measuring: interleaved, warmed up, on cold weights when the model does not fit in the cache.

A candidate is a function without arguments. Candidates of one race take turns, so that a slow spell of a
shared machine hits all of them alike, and the median of a few dozen calls is kept with its spread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tamis.compiler.tuner.suspect import Suspect, watch
from tamis.devices.base import Device, Tensor
from tamis.engine.plan import Timing


@dataclass(frozen=True)
class Contender:
    """A function to time, and the tensors that are warm in the cache when it is called in a real run.

    ``settle``: it makes up a whole engine, and is timed when the device has come to rest. ``suspect``: who it is,
    should it break the device.
    """

    call: Callable[[], None]
    warm: tuple[Tensor, ...] = ()
    settle: bool = False
    suspect: Suspect = field(default_factory=Suspect)


class Clock:
    """Times contenders on a device.

    Args:
        device: where they run.
        cold: evict the caches before every call, then touch the warm tensors again. True for models whose
            weights exceed the caches, since each layer's weights have then been evicted by the other layers.
    """

    def __init__(self, device: Device, *, cold: bool) -> None:
        self.cold = cold
        self._device = device
        self._stopwatch = device.stopwatch(cold=cold)

    def once(self, contender: Contender) -> float:
        """One call, in microseconds."""
        return self._stopwatch.time_us(contender.call, contender.warm, alone=contender.settle)

    def race(
        self, contenders: Mapping[str, Contender], repetitions: int, deadline: float = float("inf")
    ) -> dict[str, Timing]:
        """Timings of all contenders, as of ``samples``."""
        samples = self.samples(contenders, repetitions, deadline)
        return {name: summarise(values) for name, values in samples.items()}

    def samples(
        self, contenders: Mapping[str, Contender], repetitions: int, deadline: float = float("inf")
    ) -> dict[str, list[float]]:
        """Microseconds of each contender in each of ``repetitions`` turns, or until ``deadline`` (monotonic seconds).

        At least three turns are taken whatever the deadline. Raises ``DeviceLost`` for a contender that breaks the
        device.
        """
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for contender in contenders.values():
            with watch(self._device, contender.suspect):
                contender.call()
                self._device.synchronize()  # an error must not come out in the call of the next one
        for turn in range(repetitions):
            if turn >= 3 and time.monotonic() > deadline:
                break
            for name, contender in contenders.items():
                with watch(self._device, contender.suspect):
                    samples[name].append(self.once(contender))
        return samples


def summarise(samples_us: Sequence[float]) -> Timing:
    """Median and spread of repeated measurements, rounded to a nanosecond so that they survive as text."""
    ordered = sorted(samples_us)
    last = len(ordered) - 1

    def at(fraction: float) -> float:
        position = fraction * last
        low = int(position)
        high = min(low + 1, last)
        return round(ordered[low] + (ordered[high] - ordered[low]) * (position - low), 3)

    return Timing(at(0.5), at(0.1), at(0.9), len(ordered))
