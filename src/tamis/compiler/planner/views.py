"""Which steps hand out views instead of copies.

Between steps values are dense, unless all who read one take it as it lies. A split or a transpose before an
attention then moves nothing, and neither does a transpose after it. Strides are followed through the steps to
know what each view looks like; who reads what in place is the device's knowledge.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tamis.devices.base import Device
from tamis.devices.strides import Strides, dense_strides, is_dense
from tamis.engine.plan import Format, Step


@dataclass(frozen=True)
class Flow:
    """Steps in order, aliases (reshapes of dense values, which are no steps) by the value they make, and the
    values that a step copies though it might have given a view."""

    steps: tuple[Step, ...]
    aliases: Mapping[str, Step]
    copied: frozenset[str] = frozenset()


def with_views(
    flow: Flow,
    shapes: Mapping[str, tuple[tuple[int, ...], Format]],
    outputs: Collection[str],
    device: Device,
    *,
    allowed: bool = True,
) -> Flow:
    """The same flow with views handed out wherever they serve; with ``allowed`` false, it only notes the copies.

    A step is marked ``strided`` when every reader of its results takes them with their strides and none is an
    output of the engine (``outputs``), and ``view`` when its result is a dense view. An alias over a strided
    value becomes a step, because an alias sees memory as dense.
    """
    marker = _Marker(flow, shapes, outputs, device, allowed)
    for step in flow.steps:
        marker.add(step)
    return Flow(tuple(marker.steps), marker.aliases, frozenset(marker.copied))


class _Marker:
    """Goes through the steps and keeps the strides of all values that are not dense."""

    def __init__(
        self,
        flow: Flow,
        shapes: Mapping[str, tuple[tuple[int, ...], Format]],
        outputs: Collection[str],
        device: Device,
        allowed: bool,
    ) -> None:
        self.steps: list[Step] = []
        self.aliases = dict(flow.aliases)
        self.copied: set[str] = set()
        self._shapes, self._outputs, self._device, self._allowed = shapes, outputs, device, allowed
        self._strides: dict[str, Strides] = {}
        self._all_aliases = flow.aliases
        self._readers: dict[str, list[tuple[Step, int]]] = {}
        for step in (*flow.steps, *flow.aliases.values()):
            for index, value in enumerate(step.inputs):
                self._readers.setdefault(value, []).append((step, index))
        self._known: dict[tuple[str, Strides], bool] = {}

    def add(self, step: Step) -> None:
        """Append a step, marked where that serves, and what aliases of its results have to become."""
        found = self._as_views(step, self._strides_of(step.inputs[0])) if step.inputs else None
        if found is None:
            found = self._natural(step)
            strided = found is not None and self._all_free(step, found)
        elif self._all_dense(step, found):
            strided = False
            if self._allowed and self._device.writes_into_memory(step):
                step = _marked(step, "view")
        else:
            strided = self._all_free(step, found)
            if not strided and not self._device.writes_into_memory(step):
                self.copied |= set(step.outputs)
        if not strided or found is None:
            self.steps.append(step)
            return
        self.steps.append(_marked(step, "strided"))
        self._strides |= dict(zip(step.outputs, found, strict=True))
        for value in step.outputs:
            for reader, _ in self._readers.get(value, ()):
                if self._is_alias(reader):
                    del self.aliases[reader.outputs[0]]
                    self.add(replace(reader, moved_bytes=0))

    def _is_alias(self, step: Step) -> bool:
        return self._all_aliases.get(step.outputs[0]) is step

    def _strides_of(self, value: str) -> Strides:
        return self._strides.get(value, dense_strides(self._shapes[value][0]))

    def _as_views(self, step: Step, strides: Strides) -> tuple[Strides, ...] | None:
        """The strides of a step's results as views of its first input; row-major values of one type only."""
        shape, format = self._shapes[step.inputs[0]]
        results = [self._shapes[value] for value in step.outputs]
        if format.layout != "row_major" or any(other != format for _, other in results):
            return None
        return self._device.view_strides(step, shape, strides, [shape for shape, _ in results])

    def _natural(self, step: Step) -> tuple[Strides, ...] | None:
        shapes = [self._shapes[value][0] for value in step.inputs]
        found = self._device.natural_strides(step, shapes, [self._strides_of(value) for value in step.inputs])
        if found is None or len(step.outputs) != 1 or is_dense(self._shapes[step.outputs[0]][0], found):
            return None
        return (found,)

    def _all_dense(self, step: Step, strides: Sequence[Strides]) -> bool:
        pairs = zip(step.outputs, strides, strict=True)
        return all(is_dense(self._shapes[value][0], found) for value, found in pairs)

    def _all_free(self, step: Step, strides: Sequence[Strides]) -> bool:
        return self._allowed and all(self._free(v, s) for v, s in zip(step.outputs, strides, strict=True))

    def _free(self, value: str, strides: Strides) -> bool:
        """Whether every reader of a value takes it with these strides."""
        key = (value, strides)
        if key not in self._known:
            readers = self._readers.get(value, ())
            self._known[key] = value not in self._outputs and all(
                self._takes(step, index, value, strides) for step, index in readers
            )
        return self._known[key]

    def _takes(self, step: Step, index: int, value: str, strides: Strides) -> bool:
        shape = self._shapes[value][0]
        moves = index == 0 and self._as_views(step, dense_strides(shape)) is not None
        if not moves:
            return self._device.reads_strided(step, index, shape, strides)
        found = self._as_views(step, strides)
        if found is not None and (self._all_dense(step, found) or self._all_free(step, found)):
            return True
        # A step copies once, whatever comes in; but an alias that had to copy would only move the copy.
        return not self._is_alias(step)


def _marked(step: Step, how: str) -> Step:
    return replace(step, attributes={**step.attributes, how: True}, moved_bytes=0)
