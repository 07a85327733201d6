"""A convolution and the pooling behind it: as one kernel beside the best two, in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tamis.compiler.ir.graph import Graph
from tamis.compiler.planner.regions import RegionRaces, RegionTrial
from tamis.compiler.tactics import region_tactics_of, tactics_of
from tamis.compiler.tactics.base import Choice, Lowered, layer_of
from tamis.compiler.tuner.accuracy import compare
from tamis.compiler.tuner.race import Entry, Track, prepare, race_layer
from tamis.compiler.tuner.suspect import Suspect, watch
from tamis.compiler.tuner.trial import Trial, bind_trial
from tamis.engine.plan import Accuracy, Timing


@dataclass(frozen=True)
class Contestant:
    """One way to run both layers, timed beside the others; ``choices`` of the region, or of each layer."""

    choices: tuple[Choice, ...]
    timing: Timing
    accuracy: Accuracy
    note: str

    @property
    def name(self) -> str:
        """The tactics."""
        return " + ".join(choice.tactic for choice in self.choices)


def race_pair(graph: Graph, track: Track) -> tuple[list[Contestant], list[str]]:
    """The fastest region, dense and 2:4, and the fastest two layers that agree on a format, timed in turns.

    All read the graph's input as the first region does. The second result are words on what failed.
    """
    kind = track.config.device
    tactics, layers = tactics_of(kind), [layer_of(graph, node) for node in graph.nodes]
    prepare(layers, tactics, track)
    races = [race_layer(layer, tactics, track) for layer in layers]
    regions = RegionRaces(graph, track, region_tactics_of(kind))
    for tactic in regions.tactics.values():
        for region in tactic.regions(graph, regions.able(tactic)):
            for choice in tactic.choices(graph, region, track.device.info(), track.config):
                regions.measure(region, choice)
    trials = list(regions.trials.values())
    right = [trial for trial in trials if trial.timing is not None and not trial.reason]
    failed = [f"{trial.choice.tactic}: {trial.reason}" for trial in trials if trial.reason]
    if not right:
        return [], failed or ["no tactic takes both layers"]
    source = right[0].choice.inputs
    same = [trial for trial in right if trial.choice.inputs == source]
    found: dict[str, tuple[tuple[Choice, ...], Lowered, str]] = {}
    for pattern in ("dense", "2:4"):
        ours = [trial for trial in same if trial.choice.sparsity == pattern]
        if ours:
            best = min(ours, key=_median)
            lowered = regions.tactics[best.choice.tactic].lower(graph, best.region, best.choice)
            told = "; ".join(f"{_tile(trial.choice)} {_median(trial):.1f}" for trial in sorted(ours, key=_median))
            found[f"one, {pattern}"] = (best.choice,), lowered, f"alone: {told}"
        firsts = [e for e in races[0].finishers if e.choice.inputs == source and e.choice.sparsity == pattern]
        both = [(a, b) for a in firsts for b in races[1].finishers if a.choice.outputs == b.choice.inputs]
        if both:
            pair = min(both, key=lambda each: _median(each[0]) + _median(each[1]))
            by_name = {tactic.name: tactic for tactic in tactics}
            parts = [
                by_name[e.choice.tactic].lower(layer, e.choice) for e, layer in zip(pair, layers, strict=True)
            ]  # fmt: skip
            told = " + ".join(f"{_tile(entry.choice)} {_median(entry):.1f}" for entry in pair)
            choices = tuple(entry.choice for entry in pair)
            found[f"two, {pattern}"] = choices, _together(graph, parts, choices), f"alone: {told}"
    return _timed(graph, track, found), failed


def _timed(
    graph: Graph, track: Track, found: dict[str, tuple[tuple[Choice, ...], Lowered, str]]
) -> list[Contestant]:  # fmt: skip
    trials: dict[str, Trial] = {}
    accuracies: dict[str, Accuracy] = {}
    suspect = Suspect("a pair of layers")
    with torch.inference_mode(), watch(track.device, suspect):
        for name, (choices, lowered, _) in found.items():
            inputs = {
                value: (track.reference.formatted(value, format), format)
                for value, format in zip(graph.inputs, choices[0].inputs, strict=True)
            }
            outputs = {
                value: (graph.types[value], format)
                for value, format in zip(graph.outputs, choices[-1].outputs, strict=True)
            }
            trials[name] = bind_trial(track.device, lowered, inputs, outputs)
            trials[name].run()
            accuracies[name] = compare(
                trials[name].slots[trials[name].outputs[0]], track.reference.value(graph.outputs[0])
            )
        contenders = {name: trial.contender(suspect) for name, trial in trials.items()}
        timings = track.clock.race(contenders, track.config.turns)
    return [
        Contestant(choices, timings[name], accuracies[name], f"{name}; {note}")
        for name, (choices, _, note) in found.items()
    ]


def _together(graph: Graph, parts: Sequence[Lowered], choices: Sequence[Choice]) -> Lowered:
    """Two layers, one after the other; what is between them is a temporary."""
    between = {
        value: (graph.types[value].shape, format)
        for value, format in zip(graph.nodes[0].outputs, choices[0].outputs, strict=True)
    }
    first, second = parts
    constants = {**first.constants}
    renamed = {name: name if name not in constants else f"{name}.second" for name in second.constants}
    constants |= {renamed[name]: array for name, array in second.constants.items()}
    steps = tuple(
        dataclasses.replace(step, constants=tuple(renamed[name] for name in step.constants)) for step in second.steps
    )
    temporaries = {**first.temporaries, **between, **second.temporaries}
    return Lowered((*first.steps, *steps), constants, temporaries)


def _median(entry: Entry | RegionTrial) -> float:
    assert entry.timing is not None
    return entry.timing.median_us


def _tile(choice: Choice) -> str:
    """What of a choice's parameters tells its tile."""
    names = ("blocks", "groups", "pixels", "lines", "resident", "line_stages", "sliding", "by_turns")
    parts = [f"{name} {choice.parameters[name]}" for name in names if choice.parameters.get(name)]
    return " ".join([choice.tactic, *parts])
