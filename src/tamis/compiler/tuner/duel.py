"""The best of both sides of a race, dense and 2:4, against each other once more."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tamis.compiler.tactics import tactics_of
from tamis.compiler.tactics.base import Choice, Layer
from tamis.compiler.tuner.cache import Measurement
from tamis.compiler.tuner.describe import signature_of
from tamis.compiler.tuner.race import Entry, Track, race_suspects
from tamis.compiler.tuner.trial import Trial, bind_trial
from tamis.engine.crossover import Runner
from tamis.engine.plan import Sparsity, Timing


def fastest(finishers: Iterable[Entry], sparsity: Sparsity) -> Entry | None:
    """The fastest of those that ran dense, or 2:4; None when there are none."""
    timed = [(e.timing.median_us, i, e) for i, e in enumerate(finishers) if e.timing and e.choice.sparsity == sparsity]
    return min(timed)[2] if timed else None


def runner_of(entry: Entry | None, timing: Timing | None = None) -> Runner | None:
    """One that finished a race as it is recorded, with the timing of a duel if it had one."""
    if entry is None or entry.timing is None:
        return None
    choice = entry.choice
    return Runner(choice.tactic, choice.precision, timing or entry.timing, dict(choice.parameters))


def duel(layer: Layer, first: Choice, second: Choice, track: Track) -> tuple[Timing, Timing]:
    """Two choices against each other in turns, or what the timing cache knows of it.

    A race stops timing those that are far behind after a few calls, and the best of many is in part the luckiest.
    So the winners of both sides meet once more.
    """
    signature = f"{'cold' if track.clock.cold else 'warm'} duel: {signature_of(layer)}"
    choices = (first, second)
    keys = [f"{signature} by {one.key()} against {other.key()}" for one, other in (choices, choices[::-1])]
    found = [known.timing for known in map(track.cache.get, keys) if known is not None and known.timing is not None]
    if len(found) < 2:
        with torch.inference_mode():
            trials = [_bound(layer, choice, track) for choice in choices]
            suspects = race_suspects(layer, choices, track)
            contenders = {str(i): t.contender(s) for i, (t, s) in enumerate(zip(trials, suspects, strict=True))}
            timings = track.clock.race(contenders, track.config.turns)
        found = [timings["0"], timings["1"]]
        for key, timing in zip(keys, found, strict=True):
            track.cache.put(key, Measurement(timing))
    return found[0], found[1]


def _bound(layer: Layer, choice: Choice, track: Track) -> Trial:
    tactic = next(tactic for tactic in tactics_of(track.config.device) if tactic.name == choice.tactic)
    inputs = {v: (track.reference.formatted(v, f), f) for v, f in zip(layer.values, choice.inputs, strict=True)}
    outputs = {v: (layer.types[v], f) for v, f in zip(layer.node.outputs, choice.outputs, strict=True)}
    return bind_trial(track.device, tactic.lower(layer, choice), inputs, outputs)
