"""The outputs of a network with some of its weights changed, without computing again what lies before them.

The values of the dense network are held, batch by batch; for a change only the layers run that it reaches. Where all
values do not fit into a quarter of the device's memory, every change runs the whole network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph
from tamis.compiler.tactics.base import layer_of
from tamis.compiler.tuner.reference import Reference, run_layer
from tamis.devices.base import Device, Tensor
from tamis.errors import InputError

Change = Callable[[], Mapping[str, np.ndarray]]

# The part of the device's memory that the values of the dense network may fill.
_SHARE = 4


def batches_of(graph: Graph, device: Device, config: BuildConfig) -> list[dict[str, np.ndarray]]:
    """The user's samples in portions of the model's batch, or one random batch.

    A sample may hold several batches: its first extent is then a multiple of that of the input.

    Raises ``InputError`` for samples of another shape or number.
    """
    given = dict(config.samples or {})
    counts = {name: _batches_in(array, graph.types[name].shape) for name, array in given.items() if name in graph.types}
    count = max(counts.values(), default=1)
    for name, own in counts.items():
        if own not in (1, count):
            raise InputError(
                f"sample input '{name}' holds {own} batches, another one {count}", remedy="give equally many of each"
            )
    batches = []
    for index in range(count):
        portion = {
            name: array if counts.get(name, 1) == 1 else np.split(array, count)[index] for name, array in given.items()
        }
        batches.append(Reference(graph, device, replace(config, samples=portion)).samples())
    return batches


def losses(
    graph: Graph,
    device: Device,
    batches: Iterable[Mapping[str, np.ndarray]],
    changes: Sequence[Change],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """For each change of constants the power of the error of the outputs over that of the outputs, of the worst output.

    Infinite when an output is not finite any more. Raises ``InputError`` when those of the network as it is are not.
    """
    computed = {value for node in graph.nodes for value in node.outputs}
    names = [name for name in graph.outputs if graph.types[name].dtype.is_float and name in computed]
    if not names:
        raise InputError("the model has no floating-point output to compare", remedy="give a model that has one")
    noise = [dict.fromkeys(names, 0.0) for _ in changes]
    signal = dict.fromkeys(names, 0.0)
    batches = list(batches)
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            held = _Held(graph, device, batch)
            for name in names:
                if not bool(held.outputs[name].isfinite().all()):
                    raise InputError(
                        f"output '{name}' of the model is not finite", remedy="look at the model and at the samples"
                    )
                signal[name] += float(held.outputs[name].double().square().sum())
            for index, change in enumerate(changes):
                tell(number * len(changes) + index, len(batches) * len(changes))
                results = held.changed(change())
                for name in names:
                    wanted = held.outputs[name]
                    result = results.get(name, wanted)
                    noise[index][name] += float((result.double() - wanted.double()).square().sum())
    return [max(_ratio(each[name], signal[name]) for name in names) for each in noise]


class _Held:
    """The values of the network as it is, for one batch."""

    def __init__(self, graph: Graph, device: Device, batch: Mapping[str, np.ndarray]) -> None:
        self._graph, self._device = graph, device
        self._inputs = {name: device.upload(array) for name, array in batch.items()}
        size = sum(graph.types[value].size_bytes for node in graph.nodes for value in node.outputs)
        self._fits = size <= device.memory_bytes // _SHARE
        values = self._run(graph, self._inputs, set())
        self.outputs = {name: values[name] for name in graph.outputs if name in values}
        self._values = values if self._fits else self._inputs

    def changed(self, constants: Mapping[str, np.ndarray]) -> Mapping[str, Tensor]:
        """The outputs that constants of other values reach, and perhaps others."""
        graph = replace(self._graph, constants={**self._graph.constants, **constants})
        return self._run(graph, self._values, set(constants))

    def _run(self, graph: Graph, known: Mapping[str, Tensor], changed: set[str]) -> dict[str, Tensor]:
        """The values that are not ``known`` or that ``changed`` ones reach, as far as something still reads them."""
        last = {value: index for index, node in enumerate(graph.nodes) for value in node.inputs}
        keep_all = not changed and self._fits
        values: dict[str, Tensor] = {}
        for index, node in enumerate(graph.nodes):
            if all(value in known for value in node.outputs) and not changed.intersection(node.inputs):
                continue
            found = run_layer(layer_of(graph, node), {**known, **values}, self._device)
            values |= found
            changed |= found.keys()
            if not keep_all:
                for value in {*node.inputs, *node.outputs} - {*graph.outputs}:
                    if last.get(value, -1) <= index:
                        values.pop(value, None)
        return {**known, **values} if keep_all else values


def _batches_in(array: np.ndarray, shape: tuple[int, ...]) -> int:
    """How many batches a sample holds; 1 for one of any other shape, which is for its check to say."""
    if array.ndim == len(shape) > 0 and array.shape[1:] == shape[1:] and shape[0] and array.shape[0]:
        return array.shape[0] // shape[0] if array.shape[0] % shape[0] == 0 else 1
    return 1


def _ratio(noise: float, signal: float) -> float:
    if noise == 0.0:
        return 0.0
    return noise / signal if math.isfinite(noise) and signal > 0 else math.inf
