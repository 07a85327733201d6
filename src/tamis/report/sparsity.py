"""Which layers could run sparse and which do, in the words that TensorRT users know, with both times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tamis.engine.inspect import is_sparse
from tamis.engine.plan import Candidate, LayerRecord
from tamis.report.units import microseconds


def best(layer: LayerRecord, *, sparse: bool) -> Candidate | None:
    """The fastest candidate that was timed and gave right results, sparse or dense."""
    timed = [
        candidate
        for candidate in layer.candidates
        if candidate.timing is not None
        and candidate.status in ("won", "lost")
        and (candidate.sparsity != "dense") == sparse
    ]
    return min(timed, key=_median, default=None)


def sparsity_lines(layers: Sequence[LayerRecord]) -> list[str]:
    """The two lines of names, and for each eligible layer its dense and its sparse time."""
    eligible = [layer for layer in layers if layer.eligible]
    chosen = [layer for layer in layers if is_sparse(layer)]
    return [
        f"(Sparsity) Found {len(eligible)} layer(s) eligible to use sparse tactics{_names(eligible)}",
        f"(Sparsity) Chose {len(chosen)} layer(s) using sparse tactics{_names(chosen)}",
        *(f"(Sparsity)   {layer.name}: {both_times(layer)}" for layer in eligible),
    ]


def both_times(layer: LayerRecord) -> str:
    """The best dense against the best sparse candidate of a layer, in words, and why that did not win if it did not."""
    dense, sparse = best(layer, sparse=False), best(layer, sparse=True)
    if sparse is None:
        return f"{_side('dense', dense)}; no sparse time: {why_no_sparse(layer)}"
    text = f"{_side('dense', dense)}, {_side(sparse.sparsity, sparse)}"
    if dense is not None:
        text += f", sparse is {_median(dense) / _median(sparse):.2f}x as fast"
    return text if is_sparse(layer) or not sparse.reason else f"{text}; not chosen: {sparse.reason}"


def sparsity_data(layers: Sequence[LayerRecord]) -> dict[str, Any]:
    """The same as data: names, and the times in microseconds (null where there is none)."""
    return {
        "eligible": [layer.name for layer in layers if layer.eligible],
        "chosen": [layer.name for layer in layers if is_sparse(layer)],
        "times": [
            {
                "layer": layer.name,
                "dense_us": _median_or_none(best(layer, sparse=False)),
                "sparse_us": _median_or_none(best(layer, sparse=True)),
            }
            for layer in layers
            if layer.eligible
        ],
    }


def why_no_sparse(layer: LayerRecord) -> str:
    """What kept every sparse tactic from running a layer."""
    reasons = [
        f"{candidate.tactic} {candidate.status}: {candidate.reason}"
        for candidate in layer.candidates
        if candidate.reason and candidate.sparsity != "dense"
    ]
    return "; ".join(dict.fromkeys(reasons)) or "no sparse tactic for this layer here"


def _side(label: str, candidate: Candidate | None) -> str:
    if candidate is None:
        return f"{label} not timed"
    return f"{label} {microseconds(_median(candidate))} ({candidate.tactic}, {candidate.precision})"


def _median(candidate: Candidate) -> float:
    return candidate.timing.median_us if candidate.timing else float("inf")


def _median_or_none(candidate: Candidate | None) -> float | None:
    return candidate.timing.median_us if candidate and candidate.timing else None


def _names(layers: Sequence[LayerRecord]) -> str:
    return f": {', '.join(layer.name for layer in layers)}" if layers else ""
