"""Why each layer runs the way it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from tamis.engine.file import Engine
from tamis.engine.inspect import describe, is_sparse, tactic_text
from tamis.engine.plan import Candidate, LayerRecord, RegionRecord
from tamis.errors import InputError
from tamis.report.conditions import condition_lines
from tamis.report.scatter import build_scatter
from tamis.report.sparsity import sparsity_data, sparsity_lines
from tamis.report.tables import plain, table
from tamis.report.units import counted, microseconds, spread
from tamis.report.verdict import Verdict, verdict

# The order in which candidates are listed: those that ran first.
_ORDER = {"won": 0, "lost": 1, "disqualified": 2, "skipped": 3, "refused": 4}


def explain(engine: Engine, *, layer: str | None = None, every: bool = False) -> RenderableType:
    """What sparsity did for an engine and a line for each race, or all candidates of one layer or of ``every`` layer.

    Raises ``InputError`` when there is no layer of that name.
    """
    plan = engine.plan
    if layer is not None or every:
        return Group(*(_layer(record) for record in _selected(plan.layers, layer)))
    return Group(
        Text(str(verdict(engine))),
        Text(),
        table(
            ("layer", "shape", "runs as", "precision", "sparsity", ">time", "why"),
            (_row(record) for record in plan.layers),
        ),
        Text(),
        *(Text(line) for line in sparsity_lines(plan.layers)),
        *_regions(engine),
        *_engines(engine),
        *(Text(line) for line in (*build_scatter(plan), *condition_lines(plan.conditions))),
    )


def explain_data(engine: Engine, *, layer: str | None = None) -> dict[str, Any]:
    """The same as data. Raises ``InputError`` when there is no layer of that name."""
    names = {record.name for record in _selected(engine.plan.layers, layer)}
    plan = describe(engine)["plan"]
    return {
        "name": plan["name"],
        "layers": [record for record in plan["layers"] if record["name"] in names],
        "verdict": {**asdict(verdict(engine)), "text": str(verdict(engine))},
        "sparsity": sparsity_data(engine.plan.layers),
        "regions": plan["regions"],
        "engines": plan["engines"],
        "conditions": plan["conditions"],
    }


@dataclass(frozen=True)
class Explanation:
    """Why an engine runs the way it does; printed, what ``tamis explain`` prints.

    Attributes:
        verdict: whether sparsity made it faster.
        text: the verdict, a line for each layer, and the whole engines that were timed.
        data: the same as plain data, as ``tamis explain --json`` gives it.
    """

    verdict: Verdict
    text: str
    data: dict[str, Any]

    def __str__(self) -> str:
        return self.text


def explanation(engine: Engine) -> Explanation:
    """Explain an engine from the record in its plan; needs neither the model nor the device."""
    return Explanation(verdict(engine), plain(explain(engine)).rstrip("\n"), explain_data(engine))


def _selected(layers: Sequence[LayerRecord], name: str | None) -> list[LayerRecord]:
    chosen = [record for record in layers if name is None or record.name == name or name in record.origin]
    if name is not None and not chosen:
        raise InputError(f"there is no layer '{name}'", remedy="'tamis explain ENGINE' lists the layers")
    return chosen


def _row(record: LayerRecord) -> tuple[str, ...]:
    won = [c.timing for c in record.candidates if c.status == "won" and c.timing]
    time = microseconds(won[0].median_us) if won else ""
    return (
        record.name,
        _described(record),
        record.chosen_tactic,
        str(record.chosen_precision),
        _sparsity(record),
        time,
        record.why,
    )


def _described(record: LayerRecord) -> str:
    text = record.description
    return text if text.startswith(record.kind) else f"{record.kind} {text}"


def _sparsity(record: LayerRecord) -> str:
    if is_sparse(record):
        return record.chosen_sparsity
    return "dense (eligible)" if record.eligible else "dense"


def _layer(record: LayerRecord) -> RenderableType:
    eligibility = "eligible for 2:4" if record.eligible else f"not eligible: {record.ineligible_reason}"
    step = f"step {record.step}" if record.step else "no step: nothing is moved"
    choice = f"{record.chosen_tactic} in {record.chosen_precision}, {record.chosen_sparsity}"
    lines = [
        f"{record.name}: {_described(record)}",
        f"  from {', '.join(record.origin) or 'the compiler'}; {step}",
        f"  weight {record.zeros:.0%} zeros, {eligibility}",
        f"  runs as {choice}: {record.why}",
    ]
    columns = "tactic", "precision", "sparsity", "reads -> writes", "status", ">median (p10 - p90)", ">error", "reason"
    candidates = sorted(record.candidates, key=_standing)
    return Group(
        *(Text(line) for line in lines),
        Padding(table(columns, map(_candidate, candidates)), (0, 0, 0, 2), expand=False),
        Text(),
    )


def _standing(candidate: Candidate) -> tuple[int, float]:
    return _ORDER[candidate.status], candidate.timing.median_us if candidate.timing else float("inf")


def _candidate(candidate: Candidate) -> tuple[str, ...]:
    ran = bool(candidate.outputs)  # not a refusal, nor a word on all that was left out
    return (
        tactic_text(candidate.tactic, candidate.parameters),
        str(candidate.precision) if ran else "",
        candidate.sparsity if ran else "",
        _formats(candidate) if ran else "",
        candidate.status,
        spread(candidate.timing) if candidate.timing else "",
        f"{candidate.accuracy.max_relative_error:.1e}" if candidate.accuracy else "",
        candidate.reason,
    )


def _formats(ran: Candidate | RegionRecord) -> str:
    """Such as ``float32, bfloat16 channels_last -> float32``; a format that all values share stands once."""
    reads, writes = (dict.fromkeys(map(str, formats)) for formats in (ran.inputs, ran.outputs))
    return ", ".join(reads) if reads == writes else f"{', '.join(reads)} -> {', '.join(writes)}"


def _regions(engine: Engine) -> list[RenderableType]:
    if not engine.plan.regions:
        return []
    rows = (
        (
            tactic_text(region.tactic, region.parameters),
            str(region.precision),
            _region_sparsity(region),
            _formats(region),
            str(len(region.layers)),
            region.layers[0] if region.layers else "",
            microseconds(region.timing.median_us) if region.timing else "",
            microseconds(region.parts_us),
            "yes" if region.chosen else "no",
            region.reason,
        )
        for region in engine.plan.regions
    )
    way = ("tactic", "precision", "sparsity", "reads -> writes")
    columns = (*way, ">layers", "first", ">whole", ">its parts", "chosen", "reason")
    return [Text(), table(columns, rows, title="Regions of layers that one tactic could run as a whole")]


def _region_sparsity(region: RegionRecord) -> str:
    """``dense``, or 2:4 and in how many layers."""
    return f"2:4 ({counted(len(region.sparse_layers), 'layer')})" if region.sparse_layers else "dense"


def _engines(engine: Engine) -> list[RenderableType]:
    if not engine.plan.engines:
        return []
    rows = (
        (
            record.name,
            spread(record.timing),
            f"{record.accuracy.cosine:.6f}" if record.accuracy else "",
            "yes" if record.chosen else "no",
            record.reason,
        )
        for record in engine.plan.engines
    )
    columns = ("engine", ">median (p10 - p90)", ">cosine", "chosen", "reason")
    return [Text(), table(columns, rows, title="Whole engines, timed against each other")]
