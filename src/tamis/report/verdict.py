"""Whether sparsity made an engine faster, and if not, why: from the record of its build alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tamis.engine.file import Engine
from tamis.engine.inspect import is_sparse
from tamis.engine.noise import beats
from tamis.engine.plan import EngineRecord, LayerRecord, Plan
from tamis.report.sparsity import best, why_no_sparse
from tamis.report.units import counted, microseconds

_MOST_REASONS = 3


@dataclass(frozen=True)
class Verdict:
    """What sparsity did for an engine; printed, a sentence or two.

    Attributes:
        faster: whether the engine is faster, by more than the noise, than the best dense one timed beside it; None
            where sparse layers run but no dense engine was timed.
        gain: how many times as fast as that; None where one of the two was not timed.
        dense_us: median of the best dense engine, microseconds; None if none was timed.
        chosen_us: median of the engine itself; None if it was not timed.
        eligible: layers whose weights are 2:4.
        sparse: layers that run sparse.
        reasons: why other layers with weights run dense, each with the number of layers, the most frequent first.
    """

    faster: bool | None
    gain: float | None
    dense_us: float | None
    chosen_us: float | None
    eligible: int
    sparse: int
    reasons: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self._answer()}.{self._why()}"

    def _answer(self) -> str:
        share = f"{self.sparse} of {self.eligible} eligible layers run sparse"
        if not self.eligible:
            return "Not faster by sparsity: no layer has a 2:4 weight; prune the model first"
        if not self.sparse:
            return f"Not faster by sparsity: none of {counted(self.eligible, 'eligible layer')} runs sparse"
        if self.dense_us is None or self.chosen_us is None or self.gain is None:
            return f"{share}; no dense engine was timed beside this one, so that nobody knows the gain"
        times = f"{microseconds(self.chosen_us)} against {microseconds(self.dense_us)} of the best dense engine"
        if not self.faster:
            return f"Not faster by sparsity beyond the noise: {times}; {share}"
        return f"Faster by sparsity: {self.gain:.2f}x, {times}; {share}"

    def _why(self) -> str:
        if not self.reasons:
            return ""
        named = [f"{counted(count, 'layer')}: {reason}" for reason, count in self.reasons[:_MOST_REASONS]]
        more = len(self.reasons) - len(named)
        rest = f"; {counted(more, 'more reason')} below" if more else ""
        return f" Dense: {'; '.join(named)}{rest}."


def verdict(engine: Engine) -> Verdict:
    """What sparsity did for an engine."""
    plan = engine.plan
    eligible = [layer for layer in plan.layers if layer.eligible]
    sparse = [layer for layer in plan.layers if is_sparse(layer)]
    chosen = next((record.timing for record in plan.engines if record.chosen), None)
    timings = [record.timing for record in plan.engines if _is_dense(record)]
    dense = min(timings, key=lambda timing: timing.median_us, default=None)
    return Verdict(
        faster=False if not sparse else beats(chosen, dense) if chosen and dense else None,
        gain=dense.median_us / chosen.median_us if dense and chosen else None,
        dense_us=dense.median_us if dense else None,
        chosen_us=chosen.median_us if chosen else None,
        eligible=len(eligible),
        sparse=len(sparse),
        reasons=_reasons(plan, eligible or plan.layers),
    )


def _is_dense(record: EngineRecord) -> bool:
    """Whether an engine's name, up to the words on views and streams, says that it may hold dense tactics only."""
    return record.name.partition(",")[0].split()[-1:] == ["dense"]


def _reasons(plan: Plan, layers: Sequence[LayerRecord]) -> tuple[tuple[str, int], ...]:
    """Why layers run dense, most frequent first."""
    found = Counter(_reason(plan, layer) for layer in layers if not is_sparse(layer))
    return tuple((reason, count) for reason, count in found.most_common() if reason)


def _reason(plan: Plan, layer: LayerRecord) -> str:
    if not layer.eligible:
        return layer.ineligible_reason
    if plan.config.get("sparsity") == "off":
        return "sparse tactics were switched off"
    dense, sparse = best(layer, sparse=False), best(layer, sparse=True)
    if sparse is None or sparse.timing is None:
        return why_no_sparse(layer)
    if dense is not None and dense.timing is not None and not beats(sparse.timing, dense.timing):
        return "the best dense tactic is as fast or faster"
    return sparse.reason or "sparse is faster by itself, but not in the whole engine"
