"""What would 2:4 bring on this device? Asked before anybody trains.

The model is raced with every weight pruned by magnitude that can be. The best dense and the best 2:4 candidate of each
layer meet once more, and so do the best dense engine and the one that runs 2:4 where that is faster.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

from tamis import __version__
from tamis.compiler.config import BuildConfig, Progress
from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.ir.ops import Conv, ConvTranspose, Linear
from tamis.compiler.origins import Source, sources_of, weight_sources
from tamis.compiler.rescue import Model
from tamis.compiler.tactics import tactics_of
from tamis.compiler.tuner.describe import description_of, kind_of
from tamis.compiler.tuner.duel import duel, fastest, runner_of
from tamis.compiler.tuner.race import LayerRace
from tamis.compiler.what_if import WhatIf, hardware_pattern, naming_culprits, open_what_if
from tamis.engine.estimate import ESTIMATE_VERSION, Estimate, LayerEstimate, Versus
from tamis.engine.inspect import is_sparse
from tamis.engine.noise import beats
from tamis.engine.plan import LayerRecord

_MOST_REASONS = 2


def estimate_sparsity(
    model: Model, config: BuildConfig, pattern: str = "2:4", progress: Progress | None = None
) -> Estimate:
    """What pruning a model would bring on a device.

    Args:
        model: a file, its bytes, or a parsed model; its weights may be dense.
        config: as for a build; ``sparsity`` is of no account.
        pattern: how the weights would be pruned: 2:4, or a pattern whose weights are 2:4 too, such as 1:4.
        progress: called with (stage, done, total, what is being done).

    Raises ``ConfigError`` for a pattern that no kernel makes use of, ``ModelError`` for weights with NaN,
    ``DeviceLost`` when a candidate breaks the GPU, and beside that what a build raises.
    """
    start = time.monotonic()
    wanted = hardware_pattern(pattern)
    tell = progress or (lambda stage, done, total, detail: None)
    what_if = open_what_if(model, config, wanted, tell)
    return estimate_of(what_if, weight_sources(model), start, tell)


def estimate_of(what_if: WhatIf, sources: Mapping[str, Source], start: float, tell: Progress) -> Estimate:
    """The estimate of races that were run; ``start`` is the time (monotonic) at which measuring began."""
    track = what_if.track
    with naming_culprits(track):
        dense, sparse = what_if.dense, what_if.sparse
        whole = what_if.against_dense(sparse)
        weighty = [race for race in what_if.races if has_weight(race.layer.node, what_if.graph)]
        records = {record.name: record for record in sparse.plan.layers}
        layers = []
        for done, race in enumerate(weighty):
            tell("duels", done, len(weighty), race.layer.name)
            layers.append(_layer(race, records[race.layer.name], whole, what_if, sources))
    track.cache.save()
    return Estimate(
        version=ESTIMATE_VERSION,
        tamis=__version__,
        model=what_if.graph.name,
        device=track.device.info(),
        threads=track.threads,
        precisions=track.config.raced_precisions,
        pattern=str(what_if.pattern),
        inputs=dense.plan.inputs,
        cold=track.clock.cold,
        seconds=round(time.monotonic() - start, 3),
        whole=whole,
        layers=tuple(layers),
        conditions=sparse.plan.conditions,
    )


def has_weight(node: Node, graph: Graph) -> bool:
    """Whether a layer multiplies with a constant weight; one that looks rows up in it, say, does not."""
    return isinstance(node.op, Conv | ConvTranspose | Linear) and node.inputs[1] in graph.sparsity


def _layer(
    race: LayerRace, record: LayerRecord, whole: Versus, what_if: WhatIf, sources: Mapping[str, Source]
) -> LayerEstimate:
    layer, node = race.layer, race.layer.node
    dense, sparse = fastest(race.finishers, "dense"), fastest(race.finishers, "2:4")
    first = second = None
    if dense is not None and sparse is not None:
        first, second = duel(layer, dense.choice, sparse.choice, what_if.track)
    pays = first is not None and second is not None and beats(second, first)
    carries = whole.pays and is_sparse(record)
    weights, modules = sources_of(node, sources)
    note = what_if.graph.sparsity[node.inputs[1]]
    is_prunable = node.inputs[1] in what_if.prunable
    if carries:
        why = ""
    elif sparse is None:
        why = _no_sparse(race, what_if.track.config.device) if layer.eligible else ""
    elif not pays:
        why = "no faster in 2:4 by more than the noise"
    elif not whole.pays:
        why = "faster by itself, but the whole engine is not by more than the noise"
    else:
        why = f"faster by itself, but not in the engine: {record.why}"
    return LayerEstimate(
        name=layer.name,
        kind=kind_of(layer),
        description=description_of(layer),
        origin=node.origin,
        weights=weights,
        modules=modules,
        state="prunable" if is_prunable else "sparse" if layer.eligible else "ineligible",
        reason="" if layer.eligible else note.reason,
        dense=runner_of(dense, first),
        sparse=runner_of(sparse, second),
        pays=pays,
        carries=carries,
        why=why,
    )


def _no_sparse(race: LayerRace, device: Literal["cpu", "cuda"]) -> str:
    """Why an eligible layer has no sparse time."""
    sparse = {tactic.name for tactic in tactics_of(device) if tactic.sparse}
    failed = [f"{e.choice.tactic}: {e.reason}" for e in race.entries if e.choice.sparsity == "2:4" and e.reason]
    refused = [f"{name}: {reason}" for name, reason in race.refusals if name in sparse]
    reasons = list(dict.fromkeys((*failed, *refused)))
    more = f"; {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
    return f"no sparse kernel: {'; '.join(reasons[:_MOST_REASONS]) or 'none is offered here'}{more}"
