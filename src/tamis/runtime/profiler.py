"""Where the time of a run goes, step by step, reconciled with the time of whole runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tamis.engine.plan import Step, Timing
from tamis.runtime.session import Inputs, Session


@dataclass(frozen=True)
class StepTime:
    """A step and how long it took."""

    step: Step
    timing: Timing


@dataclass(frozen=True)
class Profile:
    """Times of all steps, in the order in which they run, and of whole runs without any clock between steps.

    Whole runs and profiled runs take turns, so that both see the same state of the machine.
    """

    steps: tuple[StepTime, ...]
    whole: Timing
    threads: int

    @property
    def steps_us(self) -> float:
        """Sum of the medians of all steps, in microseconds."""
        return sum(step.timing.median_us for step in self.steps)

    @property
    def difference_us(self) -> float:
        """How much more the steps take one by one than a whole run does: the cost of reading the clock."""
        return self.steps_us - self.whole.median_us

    def share(self, step: StepTime) -> float:
        """The part of all steps' time that one step takes, from 0 to 1."""
        return step.timing.median_us / self.steps_us if self.steps_us else 0.0


def profile(
    session: Session, inputs: Inputs, *, runs: int = 50, warmup_ms: float = 200.0, limit_s: float = 30.0
) -> Profile:
    """Time every step in ``runs`` runs, or as many as fit into ``limit_s`` seconds (three at least)."""
    tensors, launch = session.check(inputs), session.bind(inputs)
    timed, stopwatch = session.step_timer(tensors), session.device.stopwatch(cold=False)
    start = time.monotonic()
    while time.monotonic() - start < warmup_ms / 1e3:
        launch()
        session.device.synchronize()
    whole: list[float] = []
    parts: list[list[float]] = []
    start = time.monotonic()
    while len(whole) < runs and (len(whole) < 3 or time.monotonic() - start < limit_s):
        whole.append(stopwatch.time_us(launch))
        parts.append(timed())
    per_step = np.asarray(parts)
    return Profile(
        steps=tuple(StepTime(step, timing_of(per_step[:, number])) for number, step in enumerate(session.plan.steps)),
        whole=timing_of(whole),
        threads=session.threads,
    )


def timing_of(microseconds: Sequence[float] | np.ndarray) -> Timing:
    """Median and spread of repeated measurements."""
    p10, median, p90 = (float(value) for value in np.percentile(np.asarray(microseconds), (10, 50, 90)))
    return Timing(median_us=median, p10_us=p10, p90_us=p90, n=len(microseconds))
