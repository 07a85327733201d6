"""Latency and throughput of an engine, measured and summed up the way trtexec does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tamis.errors import ConfigError
from tamis.runtime.session import Inputs, Session


@dataclass(frozen=True)
class BenchResult:
    """Latencies of single runs in milliseconds, in the order in which they ran.

    ``wall_seconds`` is the time of all timed runs together, ``warmup_runs`` how many ran before.
    """

    latencies_ms: tuple[float, ...]
    wall_seconds: float
    warmup_runs: int
    warmup_ms: float
    threads: int

    @property
    def throughput(self) -> float:
        """Runs per second; one run is one batch."""
        return len(self.latencies_ms) / self.wall_seconds

    def percentile(self, percent: float) -> float:
        """The latency that ``percent`` % of the runs did not exceed, in milliseconds."""
        return percentile(sorted(self.latencies_ms), percent)

    @property
    def mean(self) -> float:
        """Mean latency in milliseconds."""
        return sum(self.latencies_ms) / len(self.latencies_ms)

    @property
    def median(self) -> float:
        """Median latency in milliseconds: the mean of the two in the middle for an even number of runs."""
        ordered, n = sorted(self.latencies_ms), len(self.latencies_ms)
        return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2


def percentile(ordered: Sequence[float], percent: float) -> float:
    """trtexec's percentile of sorted values: the last one that is left when the upper part is cut off."""
    n = len(ordered)
    return ordered[max(n - 1 - int((100 - percent) * n / 100), 0)]


def bench(
    session: Session,
    inputs: Inputs,
    *,
    warmup_ms: float = 200.0,
    duration_s: float = 3.0,
    iterations: int = 10,
) -> BenchResult:
    """Run for at least ``duration_s`` seconds and ``iterations`` times after a warm-up, timing each run.

    Inputs are already on the device and outputs stay there, so a latency is that of the step loop alone.
    Raises ``ConfigError`` for times that are negative or no numbers.
    """
    if not (0 <= warmup_ms < float("inf") and 0 <= duration_s < float("inf")):  # NaN neither
        raise ConfigError(f"warm-up {warmup_ms:g} ms, duration {duration_s:g} s", remedy="give finite times, 0 or more")
    launch, synchronize, clock = session.bind(inputs), session.device.synchronize, time.perf_counter_ns
    warmup_runs, start = 0, clock()
    while warmup_runs == 0 or clock() - start < warmup_ms * 1e6:
        launch()
        synchronize()
        warmup_runs += 1
    warmed = clock()
    latencies: list[int] = []
    begin = before = clock()
    end = begin + int(duration_s * 1e9)
    while before < end or len(latencies) < iterations:
        launch()
        synchronize()
        after = clock()
        latencies.append(after - before)
        before = after
    return BenchResult(
        latencies_ms=tuple(latency / 1e6 for latency in latencies),
        wall_seconds=(before - begin) / 1e9,
        warmup_runs=warmup_runs,
        warmup_ms=(warmed - start) / 1e6,
        threads=session.threads,
    )
