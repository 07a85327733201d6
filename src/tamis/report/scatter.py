"""Whether times scatter so much that something else must have run beside them."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING

from tamis.engine.plan import Plan, Timing

if TYPE_CHECKING:  # it comes with PyTorch
    from tamis.runtime.profiler import Profile

# Beyond this scatter the choice of an engine is not to be trusted. Short times scatter a little on any machine.
_SCATTERED = 3.0


def scatter(timings: Iterable[Timing]) -> float:
    """The median, over all timings, of the ninetieth percentile over the tenth; 1 when there are none."""
    return median([timing.p90_us / timing.p10_us for timing in timings if timing.p10_us > 0] or [1.0])


def scatter_lines(ratio: float, again: str, *, limit: float = _SCATTERED, typically: bool = False) -> list[str]:
    """A warning when p90 is more than ``limit`` times p10, or nothing; ``again`` says what to do anew."""
    if ratio <= limit:
        return []
    is_ = "is typically" if typically else "is"
    cause = f"The times scatter (p90 {is_} {ratio:.1f} times p10): was something else running?"
    return [f"{cause} {again} again on a quiet machine"]


def build_scatter(plan: Plan) -> list[str]:
    """The warning for the races of an engine: its own time scatters, or those of its layers typically do."""
    engines = [record.timing for record in plan.engines if record.chosen]
    layers = [c.timing for layer in plan.layers for c in layer.candidates if c.status == "won" and c.timing is not None]
    return _first(engines, layers, "Build")


def profile_scatter(profile: Profile) -> list[str]:
    """The warning for a profile: whole runs scatter, or the steps typically do."""
    return _first([profile.whole], [step.timing for step in profile.steps], "Profile")


def _first(whole: Iterable[Timing], parts: Iterable[Timing], again: str) -> list[str]:
    return scatter_lines(scatter(whole), again) or scatter_lines(scatter(parts), again, typically=True)
