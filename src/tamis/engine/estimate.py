"""An estimate: what 2:4 would bring a model on one device before anybody trains it, as frozen data and as JSON.

Every weight that can be pruned was pruned by magnitude for the sake of timing. No engine of it is kept: its results
would be wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tamis.engine.crossover import Runner, ratio_of
from tamis.engine.encoding import decode, encode
from tamis.engine.plan import Conditions, DeviceInfo, Port, Timing
from tamis.errors import ConfigError
from tamis.files import versioned_json
from tamis.formats.dtype import DType

ESTIMATE_VERSION = 1

# What a weight is: dense but could be pruned; sparse as it came; or cannot follow the pattern.
WeightState: TypeAlias = Literal["prunable", "sparse", "ineligible"]


@dataclass(frozen=True)
class Versus:
    """The best dense engine and one with pruned weights, timed in turns.

    Attributes:
        dense, sparse: their times.
        gain: how many times as fast the sparse one is: the median over the turns of dense over sparse.
        gain_p10, gain_p90: the tenth and the ninetieth percentile of that.
        pays: the sparse one runs layers in 2:4 and is faster by more than the noise: as a build judges it, and in gain.
    """

    dense: Timing
    sparse: Timing
    gain: float
    gain_p10: float
    gain_p90: float
    pays: bool


@dataclass(frozen=True)
class LayerEstimate:
    """One layer with a constant weight.

    Attributes:
        name, kind, description: of the layer as it is compiled, which may be several of the model in one.
        origin: the ONNX nodes that it is made of.
        weights: its initializers in the ONNX model.
        modules: the torch modules of those, where the exporter wrote them down.
        state: whether the weight could be pruned.
        reason: why it cannot; empty if it can.
        dense: the fastest dense candidate.
        sparse: the fastest 2:4 candidate; None when there is none, for the reasons in ``why``.
        pays: 2:4 is faster by more than the noise.
        carries: it runs 2:4 in the engine that gains.
        why: in words, why there is no sparse time or why the layer does not carry the gain; empty if it does.
    """

    name: str
    kind: str
    description: str
    origin: tuple[str, ...]
    weights: tuple[str, ...]
    modules: tuple[str, ...]
    state: WeightState
    reason: str
    dense: Runner | None
    sparse: Runner | None
    pays: bool
    carries: bool
    why: str

    @property
    def saved_us(self) -> float:
        """Microseconds that 2:4 saves in this layer; 0 when it does not pay."""
        if not self.pays or self.dense is None or self.sparse is None:
            return 0.0
        return self.dense.timing.median_us - self.sparse.timing.median_us

    @property
    def ratio(self) -> float | None:
        """How many times as fast as dense 2:4 is; None unless both were measured."""
        return ratio_of(self.dense, self.sparse)


@dataclass(frozen=True)
class Estimate:
    """What 2:4 would bring, layer by layer and end to end.

    Attributes:
        version: of this format.
        tamis: version that measured.
        model: its name.
        device: where.
        threads: cores that were used.
        precisions: what candidates might compute in.
        pattern: how weights were pruned.
        inputs: of the model, with the shapes that were measured.
        cold: layers were timed with cold caches.
        seconds: what measuring took.
        whole: the engines.
        layers: all layers with a constant weight, in order.
        conditions: how the device was doing, if it tells.
    """

    version: int
    tamis: str
    model: str
    device: DeviceInfo
    threads: int
    precisions: tuple[DType, ...]
    pattern: str
    inputs: tuple[Port, ...]
    cold: bool
    seconds: float
    whole: Versus
    layers: tuple[LayerEstimate, ...]
    conditions: Conditions | None = None

    @property
    def carriers(self) -> tuple[LayerEstimate, ...]:
        """The layers that run 2:4 where that gains."""
        return tuple(layer for layer in self.layers if layer.carries)


def estimate_data(measured: Estimate) -> dict[str, Any]:
    """The estimate as plain data for JSON."""
    data: dict[str, Any] = encode(measured)
    return data


def estimate_json(measured: Estimate) -> str:
    """The estimate as JSON; equal estimates give equal text."""
    return json.dumps(estimate_data(measured), indent=1, allow_nan=False) + "\n"


def estimate_from_json(text: str | bytes, name: str = "the text") -> Estimate:
    """The inverse of ``estimate_json``. Raises ``ConfigError``, with the ``name`` of the text, for anything else."""
    remedy = "give a file that 'tamis estimate -o FILE.json' wrote"
    data = versioned_json(text, name, "an estimate", ESTIMATE_VERSION, remedy)
    try:
        measured: Estimate = decode(Estimate, data)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{name} is an inconsistent estimate ({error})", remedy=remedy) from error
    return measured
