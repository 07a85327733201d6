"""The record of a build: for every layer who raced, in what time, who won, who refused, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tamis.compiler.planner.lower import Draft
from tamis.compiler.planner.options import Option
from tamis.compiler.planner.regions import RegionTrial
from tamis.compiler.tactics import CPU_TACTICS, CUDA_TACTICS
from tamis.compiler.tuner.describe import description_of, kind_of
from tamis.compiler.tuner.race import Entry, LayerRace
from tamis.engine.plan import Candidate, LayerRecord, RegionRecord, Sparsity

_SPARSE = {tactic.name for tactic in (*CPU_TACTICS, *CUDA_TACTICS) if tactic.sparse}


def layer_records(races: Sequence[LayerRace], draft: Draft) -> tuple[LayerRecord, ...]:
    """One record for each layer, in order."""
    chosen = {index: option for option in draft.options for index in range(option.start, option.stop)}
    return tuple(_layer_record(race, chosen[index], draft) for index, race in enumerate(races))


def region_records(trials: Sequence[RegionTrial], races: Sequence[LayerRace], draft: Draft) -> tuple[RegionRecord, ...]:
    """One record for each region measured, beside the sum of its layers' fastest tactics."""
    fastest = [min((e.timing.median_us for e in r.finishers if e.timing), default=0.0) for r in races]
    used = {(o.start, o.stop, o.choice.key()) for o in draft.options}
    records = []
    for trial in trials:
        region = trial.region
        parts = round(sum(fastest[region.start : region.stop]), 3)
        is_used = (region.start, region.stop, trial.choice.key()) in used
        reason = trial.reason
        if not reason and trial.timing is not None:
            reason = (
                "runs these layers in the engine"
                if is_used
                else f"{trial.timing.median_us:.1f} us here; the engine runs these layers otherwise"
            )
        record = RegionRecord(
            trial.choice.tactic,
            trial.choice.precision,
            tuple(n.name for n in region.nodes),
            trial.timing,
            parts,
            is_used,
            reason,
            trial.accuracy,
        )
        records.append(record)
    return tuple(records)


def _layer_record(race: LayerRace, option: Option, draft: Draft) -> LayerRecord:
    layer, note = race.layer, race.layer.note
    alone = option.stop == option.start + 1
    in_race = alone and any(entry.choice == option.choice for entry in race.entries)
    views = any(s.attributes.get("strided") for s in draft.steps if layer.name in s.layers)
    candidates = [_candidate(entry, race, option, in_race, views) for entry in race.entries]
    candidates += [
        Candidate(name, "refused", sparsity="2:4" if name in _SPARSE else "dense", reason=reason)
        for name, reason in race.refusals
    ]
    return LayerRecord(
        name=layer.name,
        kind=kind_of(layer),
        description=description_of(layer),
        origin=layer.node.origin,
        eligible=layer.eligible,
        ineligible_reason="" if note is None or layer.eligible else note.reason,
        zeros=round(float(note.zeros), 6) if note is not None else 0.0,
        candidates=tuple(candidates),
        step=draft.step_of.get(layer.name, ""),
        chosen_tactic=option.choice.tactic,
        chosen_precision=option.choice.precision,
        chosen_sparsity=_sparsity(option, layer.name),
        why=_why(race, option, in_race, views),
    )


def _sparsity(option: Option, layer: str) -> Sparsity:
    by_layer: Mapping[str, Sparsity] | None = option.choice.parameters.get("sparsity_by_layer")
    # A layer that is not listed has no weight.
    return option.choice.sparsity if by_layer is None else by_layer.get(layer, "dense")


def _candidate(entry: Entry, race: LayerRace, option: Option, in_race: bool, views: bool) -> Candidate:
    choice, timing = entry.choice, entry.timing
    won = in_race and choice == option.choice
    if won:
        status, reason = "won", ""
    elif entry.disqualified:
        status, reason = "disqualified", entry.reason
    elif timing is None:
        status, reason = "skipped", entry.reason
    else:
        status, reason = "lost", _why_lost(entry, option, in_race, views)
    layout = next((f.layout for f in choice.outputs), "row_major")
    return Candidate(
        choice.tactic, status, choice.precision, choice.sparsity, layout, choice.parameters, timing,  # type: ignore[arg-type]
        entry.accuracy, reason,
    )  # fmt: skip


def _moves_nothing(entry: Entry, option: Option, views: bool) -> bool:
    """Whether an option may have been taken before a faster one in the same formats because its results are views."""
    return views and (entry.choice.inputs, entry.choice.outputs) == (option.choice.inputs, option.choice.outputs)


def _why_lost(entry: Entry, option: Option, in_race: bool, views: bool) -> str:
    assert entry.timing is not None
    if not in_race:
        return f"the region '{option.choice.tactic}' of {option.stop - option.start} layers runs this layer"
    ratio = entry.timing.median_us / max(option.cost_us, 1e-3)
    if ratio >= 1.0:
        return f"{ratio:.2f}x the winner's time"
    if _moves_nothing(entry, option, views):
        return f"{ratio:.2f}x the winner's time by itself, but in the engine the winner hands out views"
    return f"{ratio:.2f}x the winner's time by itself, but converting to and from its format costs more"


def _why(race: LayerRace, option: Option, in_race: bool, views: bool) -> str:
    if not in_race:
        size = option.stop - option.start
        return f"runs within a region of {size} layers by {option.choice.tactic} in {option.cost_us:.1f} us"
    others = [e for e in race.finishers if e.choice != option.choice and e.timing is not None]
    if not others:
        return "the only tactic that runs it"
    best = min(others, key=lambda e: e.timing.median_us if e.timing else 0.0)
    assert best.timing is not None
    name = f"{best.choice.tactic} {best.choice.precision} {best.choice.sparsity}"
    if best.timing.median_us >= option.cost_us:
        return f"fastest: {option.cost_us:.1f} us against {best.timing.median_us:.1f} us ({name})"
    views = _moves_nothing(best, option, views)
    reason = "but here the results are views" if views else "but its formats cost conversions"
    return (
        f"best over the graph: {option.cost_us:.1f} us; {name} takes {best.timing.median_us:.1f} us by itself, {reason}"
    )
