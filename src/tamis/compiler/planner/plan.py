"""From races to an engine: search over the graph, contest between whole engines, records."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tamis import __version__
from tamis.compiler.config import BuildConfig, Progress
from tamis.compiler.ir.graph import Graph
from tamis.compiler.planner.contest import Contest, drop_duplicates
from tamis.compiler.planner.conversions import Conversions
from tamis.compiler.planner.lower import Draft, Lowering
from tamis.compiler.planner.movers import moving_nothing
from tamis.compiler.planner.options import Option, Wishes, layer_options, wishes_of
from tamis.compiler.planner.overflow import Overflows
from tamis.compiler.planner.records import layer_records, region_records
from tamis.compiler.planner.regions import RegionRaces
from tamis.compiler.planner.search import Filter, Search
from tamis.compiler.planner.select import select
from tamis.compiler.tactics import region_tactics_of, tactics_of
from tamis.compiler.tuner.conditions import conditions_of
from tamis.compiler.tuner.race import LayerRace, Track
from tamis.engine.file import Engine
from tamis.engine.plan import PLAN_VERSION, Plan, Port
from tamis.errors import BuildError
from tamis.formats.dtype import DType

# Signal-to-noise ratios (dB) below which layers are moved to float32, one after the other, when an engine
# in lower precision is not accurate enough.
_GUARD_STEPS_DB = (20.0, 30.0, 35.0, 40.0, 45.0, 50.0, 1000.0)


def plan_engine(
    graph: Graph,
    races: Sequence[LayerRace],
    track: Track,
    tell: Progress,
) -> Engine:
    """The fastest engine that is accurate enough, with the records of how it came about."""
    tell("search", 0, 0, "")
    regions = region_tactics_of(track.config.device)
    lowering = Lowering(graph, tactics_of(track.config.device), regions, track.device)
    region_races = RegionRaces(graph, track, regions)
    conversions = Conversions(track)
    layers = layer_options(graph, races)
    finder = Search(graph, layers, region_races, conversions, lambda done: tell("search", done, done + 1, "regions"))
    contest = Contest(
        lambda draft: _assemble(graph, draft, track, (), (), (), {}),
        track.device, track.config, track.cache, track.reference,
    )  # fmt: skip

    wishes = wishes_of(graph, layers, track.config)
    overflows = Overflows(graph, track.reference)
    guarded = functools.partial(_guarded, contest=contest, wishes=wishes, overflows=overflows)

    def best(allowed: Filter) -> Draft:
        return lowering.draft(finder.best(lambda o: wishes.permit(o) and allowed(o)).options)

    def by_layers(allowed: Filter) -> Draft:
        return lowering.draft(finder.by_layers(lambda o: wishes.permit(o) and allowed(o)).options)

    def with_viewing(name: str, draft: Draft) -> list[tuple[str, Draft]]:
        viewing = moving_nothing(graph, draft, layers, lowering)
        # Views first: they need less memory, so that a tie goes to them.
        return [(name, draft)] if viewing is None else [(f"{name}, splits as views", viewing), (name, draft)]

    elaborate = [
        ("dense, layer by layer", guarded(by_layers, _dense)),
        ("dense", guarded(best, _dense)),
        ("layer by layer", guarded(by_layers, _any)),
        ("all tactics", guarded(best, _any)),
    ]
    whole = [o for o in region_races.options() if (o.start, o.stop) == (0, len(graph.nodes)) and wishes.permit(o)]
    ordered = cheapest_first(whole, lambda option: select(graph, [option], conversions).cost_us)
    simple = [(name, lowering.draft((option,))) for name, option in ordered]
    proposals = [*simple, *(p for name, draft in elaborate for p in with_viewing(name, draft))]
    objections = []
    for done, (name, draft) in enumerate(proposals):
        tell("contest", done, len(proposals), name)
        objections.append(contest.objection(draft))
    drafts = drop_duplicates([p for p, objection in zip(proposals, objections, strict=True) if objection is None])
    if not drafts:
        failure = next((objection for objection in objections if objection and objection.startswith("failed")), None)
        if failure is not None:
            raise BuildError(f"no engine can be used: one {failure}", remedy="exclude the tactic that fails")
        raise BuildError("no engine is within the accuracy asked for", remedy="allow a larger error")
    tell("contest", len(proposals), len(proposals), "in turns")
    winner, engines = contest.run(drafts)
    told = overflows.told(races)
    engine = _assemble(
        graph,
        winner.draft,
        track,
        layer_records(told, winner.draft, drafts),
        region_records(tuple(region_races.trials.values()), told, winner.draft, winner.name),
        engines,
        _config_json(track.config),
    )
    return dataclasses.replace(
        engine, plan=dataclasses.replace(engine.plan, conditions=conditions_of(engine.plan, track))
    )


def cheapest_first(whole: Iterable[Option], cost_us: Callable[[Option], float]) -> list[tuple[str, Option]]:
    """The options that run the whole graph in one step, with the name of their tactic, precision, pattern and ports.

    Names come in the order of the options. Those of one name differ in which layers are 2:4, or in how tensors lie:
    the cheapest comes first, and runs if it is accurate enough. Ports in a narrow type, with conversions around them,
    and ports in the model's own are two names: what conversions cost shows in a run of the whole only.
    """
    named = [(_name_of(option), option) for option in whole]
    places = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in named))}
    return sorted(named, key=lambda pair: (places[pair[0]], cost_us(pair[1])))


def _name_of(option: Option) -> str:
    choice = option.choice
    name = f"{choice.tactic} {choice.precision} {choice.sparsity}"
    ports = {format.dtype for _, format in (*option.inputs, *option.outputs)}
    narrow = choice.precision != DType.FLOAT32 and choice.precision in ports
    return f"{name}, {choice.precision} outside" if narrow else name


def _any(option: Option) -> bool:
    return True


def _dense(option: Option) -> bool:
    return option.choice.sparsity == "dense"


def _guarded(
    make: Callable[[Filter], Draft], allowed: Filter, contest: Contest, wishes: Wishes, overflows: Overflows
) -> Draft:
    """The draft that ``make`` gives, as accurate as it must be.

    If it is not by itself, layers leave float16 where it overflows; then the least accurate ones move to float32, until
    the guard is content. Layers whose precision the user fixed stay as they are.
    """

    def kept(option: Option, sqnr_db: float) -> bool:
        accurate = option.choice.precision == DType.FLOAT32 or option.sqnr_db >= sqnr_db
        return allowed(option) and (wishes.fix(option) or (accurate and not overflows.in_option(option)))

    draft = make(allowed)
    if contest.objection(draft) is None:
        return draft
    for threshold in _GUARD_STEPS_DB if not overflows.look() else (-math.inf, *_GUARD_STEPS_DB):
        draft = make(functools.partial(kept, sqnr_db=threshold))
        if contest.objection(draft) is None:
            break
    return draft


def _assemble(
    graph: Graph,
    draft: Draft,
    track: Track,
    layers: tuple[Any, ...],
    regions: tuple[Any, ...],
    engines: tuple[Any, ...],
    config: Mapping[str, Any],
) -> Engine:
    def port(value: str) -> Port:
        return Port(value, graph.types[value].shape, graph.types[value].dtype)

    plan = Plan(
        name=graph.name,
        version=PLAN_VERSION,
        tamis=__version__,
        device=track.device.info(),
        threads=track.threads,
        inputs=tuple(port(v) for v in graph.inputs),
        outputs=tuple(port(v) for v in graph.outputs),
        input_values=graph.inputs,
        output_values=draft.output_values,
        buffers=draft.buffers,
        steps=draft.steps,
        arena_bytes=draft.arena_bytes,
        peak_bytes=draft.peak_bytes,
        layers=layers,
        regions=regions,
        engines=engines,
        config=config,
        usable_for_accuracy=track.config.sparsity != "force",
    )
    return Engine(plan, draft.constants)


def _config_json(config: BuildConfig) -> dict[str, Any]:
    """The options that shape an engine; where files lie on this machine is left out."""
    skipped = {"timing_cache", "dump", "samples", "verify", "threads"}
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in skipped}
    fields["precisions"] = [str(p) for p in config.precisions]
    fields["layer_precisions"] = [[name, [str(p) for p in wanted]] for name, wanted in config.layer_precisions]
    fields["exclude_tactics"] = list(config.exclude_tactics)
    fields["shapes"] = {name: list(shape) for name, shape in config.shapes.items()}
    return fields
