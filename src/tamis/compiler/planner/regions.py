"""Measurements of regions: each is timed once and checked, and its layers' shares are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.planner.options import Option, region_option
from tamis.compiler.tactics.base import Choice
from tamis.compiler.tactics.region import Region, RegionTactic
from tamis.compiler.tuner.accuracy import compare, objection, worst
from tamis.compiler.tuner.cache import Measurement, short_hash
from tamis.compiler.tuner.race import Track
from tamis.compiler.tuner.suspect import suspect_of, watch
from tamis.compiler.tuner.trial import bind_trial
from tamis.engine.plan import Accuracy, Timing
from tamis.errors import DeviceLost, TamisError


@dataclass(frozen=True)
class RegionTrial:
    """A region and one way to run it, measured or failed with a reason."""

    region: Region
    choice: Choice
    timing: Timing | None
    accuracy: Accuracy | None
    reason: str = ""


class RegionRaces:
    """Measures regions, each once."""

    def __init__(self, graph: Graph, track: Track, tactics: Sequence[RegionTactic]) -> None:
        self.graph = graph
        self.track = track
        self.tactics = {tactic.name: tactic for tactic in tactics}
        self.trials: dict[tuple[int, int, str], RegionTrial] = {}

    def measure(self, region: Region, choice: Choice) -> RegionTrial:
        """Time a region, check it against the reference, and remember both."""
        place = (region.start, region.stop, choice.key())
        if place not in self.trials:
            key = self._key(region, choice)
            found = self.track.cache.get(key) or self.track.cache.put(key, self._measure(region, choice))
            self.trials[place] = self._judged(region, choice, found)
        return self.trials[place]

    def options(self) -> list[Option]:
        """All regions that were measured and are right."""
        return [
            region_option(t.region, t.choice, t.timing, t.accuracy.sqnr_db if t.accuracy else 999.0)
            for t in self.trials.values()
            if t.timing is not None and not t.reason
        ]

    def able(self, tactic: RegionTactic) -> frozenset[str]:
        """The layers that a tactic can take into a region."""
        config, info = self.track.config, self.track.device.info()
        if config.excludes(tactic.name):
            return frozenset()
        return frozenset(n.name for n in self.graph.nodes if tactic.refuses(self.graph, n, info, config) is None)

    def shares(self, trial: RegionTrial) -> Mapping[str, float]:
        """Each layer's share of a region's measured time, in microseconds; empty when the tactic cannot tell."""
        tactic = self.tactics[trial.choice.tactic]
        if trial.timing is None or trial.reason:
            return {}
        key = self._key(trial.region, trial.choice) + " shares"
        found = self.track.cache.get(key)
        if found is None:
            inputs = [self.track.device.download(self.track.reference.value(v)) for v in trial.region.inputs]
            shares = tactic.profile(self.graph, trial.region, trial.choice, inputs, self.track.threads)
            found = self.track.cache.put(key, Measurement(numbers={n: round(t, 3) for n, t in shares.items()}))
        numbers = found.numbers or {}
        total = sum(numbers.values())
        return {name: part * trial.timing.median_us / total for name, part in numbers.items()} if total else {}

    def _judged(self, region: Region, choice: Choice, found: Measurement) -> RegionTrial:
        config, reason = self.track.config, found.failure
        if found.accuracy is not None and not reason:
            cosine = min(config.accuracy_cosine, 0.99)
            reason = objection(found.accuracy, choice.precision, cosine, config.accuracy_relative) or ""
        return RegionTrial(region, choice, found.timing, found.accuracy, reason)

    def _key(self, region: Region, choice: Choice) -> str:
        """Text that is equal for regions that run alike: same operators, types and wiring, whatever the weights.

        So the blocks of a network that repeat share one measurement.
        """
        numbers: dict[str, int] = {}

        def of(values: tuple[str, ...]) -> str:
            return " ".join(str(numbers.setdefault(v, len(numbers))) if v else "-" for v in values)

        def kinds(node: Node) -> str:
            graph = self.graph
            return " ".join(f"{graph.types[v]}{'=' if v in graph.constants else ''}" for v in node.inputs if v)

        parts = [f"{node.op!r} {of(node.inputs)} {kinds(node)} -> {of(node.outputs)}" for node in region.nodes]
        parts.append(f"{of(region.inputs)} -> {of(region.outputs)}")
        choices = choice.key()
        for index, node in enumerate(region.nodes):
            choices = choices.replace(json.dumps(node.name), str(index))
        heat = "cold" if self.track.clock.cold else "warm"
        whole = "engine" if len(region.nodes) == len(self.graph.nodes) else "region"
        return f"{heat} {whole} of {len(region.nodes)} layers #{short_hash(*parts)} by {choices}"

    def _measure(self, region: Region, choice: Choice) -> Measurement:
        track, graph = self.track, self.graph
        suspect = suspect_of(choice, region.nodes[0].name, self._key(region, choice))
        try:
            with torch.inference_mode(), watch(track.device, suspect):
                lowered = self.tactics[choice.tactic].lower(graph, region, choice)
                inputs = {
                    v: (track.reference.formatted(v, f), f) for v, f in zip(region.inputs, choice.inputs, strict=True)
                }
                outputs = {v: (graph.types[v], f) for v, f in zip(region.outputs, choice.outputs, strict=True)}
                trial = bind_trial(track.device, lowered, inputs, outputs)
                trial.run()
                results = [trial.slots[slot] for slot in trial.outputs]
                references = [track.reference.value(v) for v in region.outputs]
                accuracy = worst([compare(r, t) for r, t in zip(results, references, strict=True)])
                whole = (region.start, region.stop) == (0, len(graph.nodes))
                contender = trial.contender(suspect, settle=whole)
                timing = track.clock.race({"": contender}, max(5, track.config.turns // 2))[""]
        except DeviceLost:
            raise
        except (RuntimeError, TamisError) as error:
            return Measurement(failure=f"failed: {str(error).splitlines()[0][:200]}")
        return Measurement(timing, accuracy)
