"""The record of a build: for every layer who raced, in what time, who won, who refused, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tamis.compiler.planner.lower import Draft
from tamis.compiler.planner.options import Option
from tamis.compiler.planner.regions import RegionTrial
from tamis.compiler.tactics import CPU_TACTICS, CUDA_TACTICS
from tamis.compiler.tactics.base import Choice
from tamis.compiler.tuner.describe import description_of, kind_of
from tamis.compiler.tuner.race import Entry, LayerRace
from tamis.engine.plan import Candidate, LayerRecord, RegionRecord, Sparsity

_SPARSE = {tactic.name for tactic in (*CPU_TACTICS, *CUDA_TACTICS) if tactic.sparse}
_BY_LAYER = "sparsity_by_layer"  # the parameter of a region that says which of its layers are 2:4


@dataclass(frozen=True)
class _Place:
    """What runs a layer. ``views``: its results may be views; ``rivals``: what runs it in other engines, by name."""

    option: Option
    in_race: bool
    views: bool
    rivals: Mapping[str, Option]

    @property
    def region(self) -> str:
        return f"'{self.option.choice.tactic}' of {self.option.stop - self.option.start} layers"

    def rival_with(self, choice: Choice) -> str | None:
        """The name of an engine that lost and runs the layer by a choice."""
        return next((name for name, rival in self.rivals.items() if rival.choice == choice), None)


def layer_records(races: Sequence[LayerRace], draft: Draft, drafts: Mapping[str, Draft]) -> tuple[LayerRecord, ...]:
    """One record for each layer, in order; ``drafts`` are all engines of the contest, ``draft`` is the winner."""
    chosen = _option_of_layers(draft)
    rivals = {name: _option_of_layers(other) for name, other in drafts.items() if other.options != draft.options}
    return tuple(
        _layer_record(race, chosen[index], draft, {name: options[index] for name, options in rivals.items()})
        for index, race in enumerate(races)
    )


def _option_of_layers(draft: Draft) -> dict[int, Option]:
    return {index: option for option in draft.options for index in range(option.start, option.stop)}


def region_records(
    trials: Sequence[RegionTrial], races: Sequence[LayerRace], draft: Draft, winner: str
) -> tuple[RegionRecord, ...]:
    """One record for each region measured, beside the sum of its layers' fastest tactics.

    ``draft`` is the engine that won the contest and ``winner`` its name.
    """
    fastest = [min((e.timing.median_us for e in r.finishers if e.timing), default=0.0) for r in races]
    used = {(o.start, o.stop, o.choice.key()) for o in draft.options}
    records = []
    for trial in trials:
        region = trial.region
        parts = round(sum(fastest[region.start : region.stop]), 3)
        is_used = (region.start, region.stop, trial.choice.key()) in used
        reason = trial.reason
        if not reason and trial.timing is not None:
            reason = _why_region(trial.timing.median_us, parts, is_used, winner)
        record = RegionRecord(
            trial.choice.tactic,
            trial.choice.precision,
            tuple(n.name for n in region.nodes),
            trial.timing,
            parts,
            is_used,
            reason,
            trial.accuracy,
            tuple(n.name for n in region.nodes if _sparsity(trial.choice, n.name) == "2:4"),
            trial.choice.inputs,
            trial.choice.outputs,
            {name: value for name, value in trial.choice.parameters.items() if name != _BY_LAYER},
        )
        records.append(record)
    return tuple(records)


def _why_region(whole_us: float, parts_us: float, is_used: bool, winner: str) -> str:
    if is_used:
        return "runs these layers in the engine"
    if parts_us and whole_us >= parts_us:
        return f"{whole_us / parts_us:.2f}x the time of its parts"
    return f"the engine '{winner}' won by its time as a whole, and runs these layers otherwise"


def _sparsity_of(tactic: str) -> Sparsity:
    return "2:4" if tactic in _SPARSE else "dense"


def _layer_record(race: LayerRace, option: Option, draft: Draft, rivals: Mapping[str, Option]) -> LayerRecord:
    layer, note = race.layer, race.layer.note
    alone = option.stop == option.start + 1
    in_race = alone and any(entry.choice == option.choice for entry in race.entries)
    views = any(s.attributes.get("strided") for s in draft.steps if layer.name in s.layers)
    place = _Place(option, in_race, views, rivals)
    candidates = [_candidate(entry, place) for entry in race.entries]
    candidates += [
        Candidate(name, "refused", sparsity=_sparsity_of(name), reason=reason) for name, reason in race.refusals
    ]
    candidates += [
        Candidate(name, "skipped", sparsity=_sparsity_of(name), reason=reason) for name, reason in race.left_out
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
        step=_step(layer.name, draft),
        chosen_tactic=option.choice.tactic,
        chosen_precision=option.choice.precision,
        chosen_sparsity=_sparsity(option.choice, layer.name),
        why=_why(race, place),
    )


def _step(layer: str, draft: Draft) -> str:
    """The step that computes a layer; none where it is a view, or its pieces are written in place."""
    name = draft.step_of.get(layer, "")
    return name if any(step.name == name for step in draft.steps) else ""


def _sparsity(choice: Choice, layer: str) -> Sparsity:
    by_layer: Mapping[str, Sparsity] | None = choice.parameters.get(_BY_LAYER)
    # A layer that is not listed has no weight.
    return choice.sparsity if by_layer is None else by_layer.get(layer, "dense")


def _candidate(entry: Entry, place: _Place) -> Candidate:
    choice, timing = entry.choice, entry.timing
    won = place.in_race and choice == place.option.choice
    if won:
        status, reason = "won", ""
    elif entry.disqualified:
        status, reason = "disqualified", entry.reason
    elif timing is None:
        # The status says already that it was skipped.
        status, reason = "skipped", entry.reason.removeprefix("skipped").lstrip(": ")
    else:
        status, reason = "lost", _why_lost(entry, place)
    return Candidate(
        choice.tactic, status, choice.precision, choice.sparsity, choice.inputs, choice.outputs,  # type: ignore[arg-type]
        choice.parameters, timing, entry.accuracy, reason,
    )  # fmt: skip


def _moves_nothing(entry: Entry, place: _Place) -> bool:
    """Whether an option may have been taken before a faster one in the same formats because its results are views."""
    chosen = place.option.choice
    return place.views and (entry.choice.inputs, entry.choice.outputs) == (chosen.inputs, chosen.outputs)


def _why_lost(entry: Entry, place: _Place) -> str:
    assert entry.timing is not None
    if not place.in_race:
        return f"the region {place.region} runs this layer"
    ratio = entry.timing.median_us / max(place.option.cost_us, 1e-3)
    if ratio >= 1.0:
        return f"{ratio:.2f}x the winner's time"
    alone, rival = f"{ratio:.2f}x the winner's time by itself", place.rival_with(entry.choice)
    if _moves_nothing(entry, place):
        return f"{alone}, but in the engine the winner hands out views"
    if rival is not None:
        return f"{alone}, but the whole engine '{rival}' with it was not faster"
    return f"{alone}, but converting to and from its format costs more"


def _why(race: LayerRace, place: _Place) -> str:
    option = place.option
    if not place.in_race:
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
    rival = place.rival_with(best.choice)
    if _moves_nothing(best, place):
        reason = "but here the results are views"
    elif rival is not None:
        reason = f"but the whole engine '{rival}' with it was not faster"
    else:
        reason = "but its formats cost conversions"
    return (
        f"best over the graph: {option.cost_us:.1f} us; {name} takes {best.timing.median_us:.1f} us by itself, {reason}"
    )
