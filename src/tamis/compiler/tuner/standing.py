"""How a race stands: what the candidates so far say of those that have not run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tamis.compiler.tactics.base import Choice
from tamis.compiler.tuner.prior import Roof
from tamis.formats.dtype import DType

# A candidate slower than this many times the best of its formats is not measured further.
BEHIND = 1.6
# A precision at less than this fraction of the rate of the fastest is slow: tf32 and float32 beside float16.
_SLOW = 0.75
OUTCLASSED = "skipped: the best of"


def slower_precisions(precisions: Iterable[DType], roof: Roof) -> frozenset[DType]:
    """Those that multiply at less than a fraction of the rate of the fastest."""
    rates = {precision: roof.flops_per_us[precision] for precision in precisions}
    return frozenset(p for p, rate in rates.items() if rate < _SLOW * max(rates.values()))


@dataclass
class Standing:
    """What the candidates so far say of those that follow.

    ``best``: times of the right ones by formats; ``quickest``: of the dense ones among them by precision.
    """

    slow: frozenset[DType]
    best: dict[object, float] = field(default_factory=dict)
    quickest: dict[DType, float] = field(default_factory=dict)
    roof_holds: bool = True

    def spares(self, choice: Choice, turn: int, bound: float) -> str | None:
        """Why a candidate need not run, whatever time is left; None when it must."""
        best = self.best.get((choice.inputs, choice.outputs), float("inf"))
        if self.roof_holds and bound > BEHIND * best:
            return f"skipped by the roofline: at least {bound:.1f} us, another took {best:.1f} us"
        if turn and choice.precision in self.slow:
            fast = min((us for other, us in self.quickest.items() if other not in self.slow), default=float("inf"))
            own = self.quickest.get(choice.precision, 0.0)
            if own > BEHIND * fast:
                return f"{OUTCLASSED} {choice.precision} took {own:.1f} us where another took {fast:.1f}"
        return None

    def waives(self, choice: Choice) -> bool:
        """Whether a candidate may be left out for want of time.

        Each pair of formats has one, but of slow precisions only PyTorch's must be there, which is the reference.
        """
        has_one = (choice.inputs, choice.outputs) in self.best
        return has_one or (choice.precision in self.slow and choice.tactic != "aten")

    def note(self, choice: Choice, us: float) -> None:
        """A candidate's time, whose result is right."""
        formats = (choice.inputs, choice.outputs)
        self.best[formats] = min(self.best.get(formats, us), us)
        if choice.sparsity == "dense":  # as a build without sparse tactics would see it
            self.quickest[choice.precision] = min(self.quickest.get(choice.precision, us), us)
