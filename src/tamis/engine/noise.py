"""When one time counts as shorter than another, for the contest of a build and for what reports say of it."""

from __future__ import annotations

from tamis.engine.plan import Timing

# Differences below this fraction mean nothing, however quiet the machine.
NOISE = 0.03


def beats(challenger: Timing, holder: Timing) -> bool:
    """Whether the challenger is faster by more than the noise.

    Both the median and the tenth percentile must be lower: the median alone is at the mercy of a machine that
    was busy for half of the turns, the fast end alone at that of a few lucky calls.
    """
    limit = 1.0 - NOISE
    return challenger.median_us < limit * holder.median_us and challenger.p10_us < limit * holder.p10_us
