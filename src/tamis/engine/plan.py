"""The plan: everything an engine is, as frozen data.

A plan says which steps run in which order on which buffers, and keeps the record of the race that chose
them, so that an engine can be explained without the device it was built for. It holds no weights: those are
tensors of the engine file, named by ``Step.constants``. All of it is JSON; ``to_json`` and ``from_json`` are
exact inverses and ``to_json`` is deterministic, so equal plans give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tamis.engine.encoding import decode, encode
from tamis.errors import CorruptEngine
from tamis.formats.dtype import DType

PLAN_VERSION = 3

JSON: TypeAlias = "None | bool | int | float | str | list[JSON] | tuple[JSON, ...] | Mapping[str, JSON]"
Layout: TypeAlias = Literal["row_major", "channels_last"]
Sparsity: TypeAlias = Literal["dense", "2:4"]


@dataclass(frozen=True)
class Format:
    """How a tensor lies in memory: element type and order of its axes.

    ``channels_last`` stores an ``[N, C, ...]`` tensor with C innermost (NHWC); shapes stay logical.
    """

    dtype: DType = DType.FLOAT32
    layout: Layout = "row_major"

    def __str__(self) -> str:
        return f"{self.dtype}{'' if self.layout == 'row_major' else ' channels_last'}"


@dataclass(frozen=True)
class Port:
    """An input or output of the engine, as the user sees it: always row-major, in the model's own type."""

    name: str
    shape: tuple[int, ...]
    dtype: DType


@dataclass(frozen=True)
class Buffer:
    """A tensor that exists while the engine runs.

    ``place``: ``input`` (given by the user), ``arena`` (at ``offset`` bytes of the one block that the planner
    laid out), ``device`` (allocated by the library that computes it, and freed after its last use) or
    ``alias`` (another view of ``alias_of``). The buffer is live from step ``first`` to step ``last``.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    place: Literal["input", "arena", "device", "alias"]
    first: int
    last: int
    size_bytes: int
    offset: int = 0
    alias_of: str = ""


@dataclass(frozen=True)
class Step:
    """One call that the runtime makes: ``outputs = kernel(inputs, constants; attributes)``.

    ``layers`` names the layers that it computes (several for a region), ``kernel`` who computes them.
    ``flops`` counts a multiply-add as two and zeros as if they were dense; ``moved_bytes`` is the least traffic.
    Steps of one ``stream`` run in order; a step starts when those of other streams that it ``waits`` for, by number,
    have ended. A device without streams runs all steps in order. Several steps may write parts of one value; all but
    the first of them also have it as their last input.
    """

    name: str
    kernel: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    precision: DType = DType.FLOAT32
    sparsity: Sparsity = "dense"
    flops: int = 0
    moved_bytes: int = 0
    stream: int = 0
    waits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Timing:
    """Repeated measurements of one thing, in microseconds."""

    median_us: float
    p10_us: float
    p90_us: float
    n: int


@dataclass(frozen=True)
class Accuracy:
    """How far a result is from the reference: largest error over the largest reference value, cosine, and
    signal-to-noise ratio in decibels (``inf`` when equal is stored as 999)."""

    max_relative_error: float
    cosine: float
    sqnr_db: float


@dataclass(frozen=True)
class Candidate:
    """One tactic in the race for one layer, and how it fared.

    ``status``: ``won``, ``lost``, ``refused`` (the tactic cannot run the layer), ``skipped`` (the prior or the
    budget left it out) or ``disqualified`` (its result was wrong). ``reason`` says why, in words. One that refused has
    the sparsity "2:4" if it makes use of sparse weights. ``inputs`` and ``outputs`` are the formats that it reads and
    writes; one that refused has none, and so has one that was skipped for many of its kind.
    """

    tactic: str
    status: Literal["won", "lost", "refused", "skipped", "disqualified"]
    precision: DType = DType.FLOAT32
    sparsity: Sparsity = "dense"
    inputs: tuple[Format, ...] = ()
    outputs: tuple[Format, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timing: Timing | None = None
    accuracy: Accuracy | None = None
    reason: str = ""


@dataclass(frozen=True)
class LayerRecord:
    """What is known of one layer: its shape in words, its weight's zeros, and its race.

    ``step`` computes it; it is empty where nothing has to be done: a view, or a Concat whose pieces are in place.
    """

    name: str
    kind: str
    description: str
    origin: tuple[str, ...]
    eligible: bool
    ineligible_reason: str
    zeros: float
    candidates: tuple[Candidate, ...]
    step: str
    chosen_tactic: str
    chosen_precision: DType
    chosen_sparsity: Sparsity
    why: str


@dataclass(frozen=True)
class RegionRecord:
    """A region of layers that one tactic could run as a whole, against the sum of its parts.

    ``sparse_layers`` are those of ``layers`` that it would run 2:4; ``inputs`` and ``outputs`` are the formats of the
    values that cross its border.
    """

    tactic: str
    precision: DType
    layers: tuple[str, ...]
    timing: Timing | None
    parts_us: float
    chosen: bool
    reason: str
    accuracy: Accuracy | None = None
    sparse_layers: tuple[str, ...] = ()
    inputs: tuple[Format, ...] = ()
    outputs: tuple[Format, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineRecord:
    """Whole engines that were timed against each other at the end of the build."""

    name: str
    timing: Timing
    accuracy: Accuracy | None
    chosen: bool
    reason: str


@dataclass(frozen=True)
class DeviceInfo:
    """The device an engine was built on and the libraries whose version its tactics depend on."""

    kind: Literal["cpu", "cuda"]
    name: str
    architecture: str
    cores: int
    features: tuple[str, ...]
    libraries: Mapping[str, str]


@dataclass(frozen=True)
class DeviceState:
    """How a device was doing at one moment: clocks in MHz, power in watts, temperature in degrees Celsius.

    What a device does not tell is 0. ``slowed_by_...``: its clocks were held down at that moment, by heat or because of
    its power limit.
    """

    sm_mhz: float
    memory_mhz: float
    power_w: float
    power_limit_w: float
    temperature_c: float
    slowed_by_heat: bool
    slowed_by_power: bool


@dataclass(frozen=True)
class Conditions:
    """The state of the device before anything was measured, and right after the last measurement."""

    before: DeviceState
    after: DeviceState


@dataclass(frozen=True)
class Plan:
    """An engine without its weights."""

    name: str
    version: int
    tamis: str
    device: DeviceInfo
    threads: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    input_values: tuple[str, ...]
    output_values: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    arena_bytes: int
    peak_bytes: int
    layers: tuple[LayerRecord, ...]
    regions: tuple[RegionRecord, ...]
    engines: tuple[EngineRecord, ...]
    config: Mapping[str, Any]
    usable_for_accuracy: bool = True
    conditions: Conditions | None = None


def to_json(plan: Plan) -> str:
    """The plan as compact JSON with sorted keys; equal plans give equal text."""
    return json.dumps(encode(plan), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_json(text: str) -> Plan:
    """The inverse of ``to_json``. Raises ``CorruptEngine`` for anything that is not a plan of this version."""
    try:
        data = json.loads(text)
        version = data["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptEngine("the plan is not readable", remedy="build the engine again") from error
    if version != PLAN_VERSION:
        raise CorruptEngine(
            f"the plan has format version {version}, this Tamis reads version {PLAN_VERSION}",
            remedy="build the engine again with this version of Tamis",
        )
    try:
        plan: Plan = decode(Plan, data)
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptEngine(f"the plan is inconsistent ({error})", remedy="build the engine again") from error
    return plan
