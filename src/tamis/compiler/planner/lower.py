"""From chosen options to steps, constants and buffers: an engine but for its records.

Conversions between formats become steps of their own, shared by all readers of a value. A reshape of a
row-major value costs nothing and becomes a view, and so do splits and transposes where the readers allow it
(``views.py``); pieces of a Concat are written in place (``joints.py``). Constants with equal content are stored once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tamis.compiler.ir.graph import Graph
from tamis.compiler.planner.aside import aside
from tamis.compiler.planner.conversions import same_memory
from tamis.compiler.planner.joints import aligned_by_joins, joined_in_place
from tamis.compiler.planner.memory import Lifetime, peak_bytes, place
from tamis.compiler.planner.options import Option
from tamis.compiler.planner.select import port_format
from tamis.compiler.planner.views import Flow, with_views
from tamis.compiler.tactics.base import Lowered, Tactic, layer_of
from tamis.compiler.tactics.conversion import conversion_step
from tamis.compiler.tactics.region import RegionTactic, region_of
from tamis.compiler.tuner.cache import digest_of
from tamis.devices.base import Device
from tamis.engine.plan import Buffer, DeviceInfo, Format, Step


@dataclass(frozen=True, eq=False)
class Draft:
    """Steps, buffers and constants of an engine. ``step_of`` names the step that computes each layer.

    A draft is equal to itself only, so it can be a key: never its ``id``, which goes to another one once it is gone.

    ``copying`` is the same engine with a copy wherever this one hands out a view or writes a piece of a Concat in
    place, ``aside`` the same with some steps on a second stream; None where they are the same.
    """

    options: tuple[Option, ...]
    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    constants: Mapping[str, np.ndarray]
    digests: Mapping[str, str]
    output_values: tuple[str, ...]
    arena_bytes: int
    peak_bytes: int
    step_of: Mapping[str, str]
    copying: Draft | None = None
    aside: Draft | None = None


class Lowering:
    """Lowers selections of one graph; packed constants are kept between selections that share options."""

    def __init__(
        self, graph: Graph, tactics: Iterable[Tactic], regions: Iterable[RegionTactic], device: Device
    ) -> None:
        self.graph = graph
        self.device = device
        self._tactics = {tactic.name: tactic for tactic in tactics}
        self._regions = {tactic.name: tactic for tactic in regions}
        self._lowered: dict[tuple[int, int, str], tuple[Lowered, dict[str, str]]] = {}

    def lower(self, option: Option) -> tuple[Lowered, dict[str, str]]:
        """Packed constants and steps of one option, and the digests of those constants."""
        key = (option.start, option.stop, option.choice.key())
        if key not in self._lowered:
            lowered = self._lower(option)
            digests = {name: digest_of(array) for name, array in lowered.constants.items()}
            self._lowered[key] = (lowered, digests)
        return self._lowered[key]

    def _lower(self, option: Option) -> Lowered:
        name = option.choice.tactic
        if name in self._tactics:
            layer = layer_of(self.graph, self.graph.nodes[option.start])
            return self._tactics[name].lower(layer, option.choice)
        region = region_of(self.graph, option.start, option.stop)
        return self._regions[name].lower(self.graph, region, option.choice)

    def draft(self, options: tuple[Option, ...]) -> Draft:
        """The engine that runs ``options`` one after the other."""
        writer = _Writer(self.graph, self.device.info())
        for option in options:
            writer.add(option, *self.lower(option))
        outputs = tuple(writer.converted(v, port_format(self.graph, v)) for v in self.graph.outputs)
        flow = Flow(tuple(writer.steps), writer.views)
        copying, viewing = (
            with_views(flow, writer.shapes, outputs, self.device, allowed=allowed) for allowed in (False, True)
        )
        viewing = aligned_by_joins(viewing, writer.shapes, outputs)
        viewing = joined_in_place(viewing, writer.shapes, outputs)
        plain = self._finished(options, writer, copying, outputs)
        made = plain if viewing == copying else self._finished(options, writer, viewing, outputs)
        parallel = aside(viewing, outputs, self.device)
        beside = None
        if parallel is not None:
            beside = self._finished(options, writer, parallel.flow, outputs, parallel.spans)
        return replace(made, copying=None if made is plain else plain, aside=beside)

    def _finished(
        self,
        options: tuple[Option, ...],
        writer: _Writer,
        flow: Flow,
        outputs: tuple[str, ...],
        spans: Mapping[int, tuple[int, int]] | None = None,
    ) -> Draft:
        buffers, arena, peak = _buffers(flow, writer.shapes, self.graph, outputs, self.device, spans or {})
        return Draft(
            options, flow.steps, buffers, writer.constants, writer.digests, outputs, arena, peak, writer.step_of
        )


class _Writer:
    """Collects steps while values, formats and views are kept track of."""

    def __init__(self, graph: Graph, device: DeviceInfo) -> None:
        self.graph = graph
        self.device = device
        self.steps: list[Step] = []
        self.constants: dict[str, np.ndarray] = {}
        self.digests: dict[str, str] = {}
        self.step_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[tuple[int, ...], Format]] = {}
        self.views: dict[str, Step] = {}
        self._names: dict[str, str] = {}
        for value in graph.inputs:
            self.shapes[value] = (graph.types[value].shape, port_format(graph, value))

    def add(self, option: Option, lowered: Lowered, digests: Mapping[str, str]) -> None:
        """Append the steps of an option, with the conversions that its inputs need."""
        sources = {v: self.converted(v, f) for v, f in option.inputs}
        stored = {name: self._store(name, array, digests[name]) for name, array in lowered.constants.items()}
        self.shapes |= dict(lowered.temporaries)
        for value, format in option.outputs:
            self.shapes[value] = (self.graph.types[value].shape, format)
        for step in lowered.steps:
            inputs = tuple(sources.get(v, v) for v in step.inputs)
            for layer in step.layers:
                self.step_of.setdefault(layer, step.name)
            written = replace(step, inputs=inputs, constants=tuple(stored[name] for name in step.constants))
            if self._is_view(step, inputs):
                self.views[step.outputs[0]] = written
            else:
                self.steps.append(written)

    def converted(self, value: str, format: Format) -> str:
        """The name of a value in a format, converting it if it does not lie so yet."""
        shape, present = self.shapes[value]
        if present == format:
            return value
        name = f"{value}@{format}".replace(" ", ".")
        if name not in self.shapes:
            self.shapes[name] = (shape, format)
            if same_memory(shape, present, format):
                self.views[name] = Step(f"view {name}", "aten.reshape", (value,), (name,), precision=format.dtype)
                return name
            step, constants = conversion_step(value, name, shape, present, format, self.device)
            stored = tuple(self._store(key, array, digest_of(array)) for key, array in constants.items())
            self.steps.append(replace(step, constants=stored))
        return name

    def _is_view(self, step: Step, inputs: tuple[str, ...]) -> bool:
        if step.kernel != "aten.reshape" or not inputs:
            return False
        source, target = self.shapes[inputs[0]][1], self.shapes[step.outputs[0]][1]
        return source == target and source.layout == "row_major"

    def _store(self, name: str, array: np.ndarray, digest: str) -> str:
        """The name under which a constant is stored; equal content is stored once."""
        if digest not in self._names:
            unique, count = name, 1
            while unique in self.constants:
                count += 1
                unique = f"{name}.{count}"
            self._names[digest] = unique
            self.constants[unique] = np.ascontiguousarray(array)
            self.digests[unique] = digest
        return self._names[digest]


def _buffers(
    flow: Flow,
    shapes: Mapping[str, tuple[tuple[int, ...], Format]],
    graph: Graph,
    outputs: tuple[str, ...],
    device: Device,
    spans: Mapping[int, tuple[int, int]],
) -> tuple[tuple[Buffer, ...], int, int]:
    """Places and lifetimes of all values, the arena's size and the largest live set, in bytes.

    ``spans`` says when a step may be running that does not run in its turn.
    """
    views = {value: step.inputs[0] for value, step in flow.aliases.items()}
    # Several steps may write one value, piece by piece: it lives from the first of them on.
    made = {value: index for index, step in enumerate(flow.steps) for value in step.outputs}
    first = {value: index for index, step in reversed([*enumerate(flow.steps)]) for value in step.outputs}
    begun = dict(first)
    for index, (start, _) in spans.items():
        begun |= {value: min(begun[value], start) for value in flow.steps[index].outputs}
    writers = {value: step for step in flow.steps for value in step.outputs}
    owner = {value: value for value in (*graph.inputs, *made)}
    for view, source in views.items():
        owner[view] = owner[source]
    # A step that hands out views of its input keeps that input's memory alive as long as they live.
    parent = {
        v: step.inputs[0]
        for v, step in writers.items()
        if step.inputs and v not in flow.copied and device.may_alias(step) and not device.writes_into_memory(step)
    }
    parent |= views
    end = len(flow.steps)
    last = dict.fromkeys(owner, -1)
    for index, step in enumerate(flow.steps):
        ended = max(index, spans.get(index, (0, 0))[1])
        for value in (*step.inputs, *step.outputs):
            last[value] = max(last[value], ended)
            last[owner[value]] = max(last[owner[value]], ended)
    for value in outputs:
        last[value] = last[owner[value]] = end
    kept = dict(last)
    for value in owner:
        root = value
        while root in parent:
            root = parent[root]
            kept[root] = max(kept[root], last[value])
    sizes = {v: int(np.prod(s, dtype=np.int64)) * f.dtype.size_bytes for v, (s, f) in shapes.items()}
    lifetimes = [Lifetime(v, sizes[v], begun[v], max(kept[v], made[v])) for v in made if v not in parent]
    in_arena = [x for x in lifetimes if device.writes_into_memory(writers[x.name]) and x.size_bytes]
    offsets, arena = place(in_arena)
    buffers = []
    for value, held_by in owner.items():
        shape, format = shapes[value]
        kind = "input" if value in graph.inputs else "arena" if value in offsets else "device"
        if value in views:
            kind = "alias"
        buffers.append(
            Buffer(
                value,
                shape,
                format,
                kind,  # type: ignore[arg-type]
                first.get(value, first.get(held_by, 0)),
                max(kept[value], 0),
                sizes[value],
                offsets.get(value, 0),
                views.get(value, ""),
            )
        )
    return tuple(buffers), arena, peak_bytes(lifetimes, end)
