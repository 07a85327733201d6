"""The reference: every layer in float32, row-major, one after the other, on sample inputs.

It gives the races real activations to work on and every candidate something to be compared with. Nothing is
computed before the first value is asked for, so a build that finds all it needs in the timing cache never
runs the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, TensorType
from tamis.compiler.ir.ops import Gather
from tamis.compiler.tactics.aten import Aten
from tamis.compiler.tactics.base import Layer, layer_of
from tamis.compiler.tuner.suspect import Suspect, watch
from tamis.compiler.tuner.trial import bind_trial
from tamis.devices.base import Device, Tensor
from tamis.engine.plan import Format
from tamis.errors import InputError

# The part of the device's memory that values may fill; beyond it only those that are asked for are held.
_SHARE = 4
# From here on a value stands for infinity: sums of activations stay far below.
_AS_GOOD_AS_INFINITE = 1e30


class Reference:
    """The values of a graph for one set of sample inputs, computed on first use.

    All are held while they fill no more than a quarter of the device's memory. Else those are that ``expect`` named,
    and one that was not expected costs another run of the network.
    """

    def __init__(self, graph: Graph, device: Device, config: BuildConfig) -> None:
        self.graph = graph
        self.device = device
        self.config = config
        self._values: dict[str, Tensor] = {}
        self._expected = {*graph.inputs, *graph.outputs}
        self._samples: dict[str, np.ndarray] | None = None

    def expect(self, names: Iterable[str]) -> None:
        """Hold these values when the network runs."""
        self._expected |= set(names)

    def samples(self) -> dict[str, np.ndarray]:
        """The sample inputs: the user's, or random ones made from the seed."""
        if self._samples is None:
            self._samples = self._drawn()
        return self._samples

    def _drawn(self) -> dict[str, np.ndarray]:
        given = dict(self.config.samples or {})
        unknown = set(given) - set(self.graph.inputs)
        if unknown:
            raise InputError(
                f"sample inputs {sorted(unknown)} are not inputs of the model",
                remedy=f"its inputs are {', '.join(self.graph.inputs)}",
            )
        generator = np.random.default_rng(self.config.seed)
        bounds = index_bounds(self.graph)
        result = {}
        for name in self.graph.inputs:
            type_ = self.graph.types[name]
            if name in given:
                result[name] = _checked_sample(name, given[name], type_)
            elif type_.dtype.is_float:
                result[name] = generator.standard_normal(type_.shape).astype(type_.dtype.numpy)
            else:
                high = bounds.get(name, 2)
                result[name] = generator.integers(0, high, type_.shape).astype(type_.dtype.numpy)
        return result

    def value(self, name: str) -> Tensor:
        """A value of the graph, on the device, row-major, in the type the graph gives it."""
        if name not in self._values:
            self.expect((name,))
            self._values.clear()
            self._run()
        return self._values[name]

    def formatted(self, name: str, format: Format) -> Tensor:
        """A value converted to a format."""
        tensor = self.value(name)
        result = self.device.empty(tuple(tensor.shape), format)
        result.copy_(tensor)
        return result

    def outputs(self) -> Mapping[str, np.ndarray]:
        """The outputs of the graph."""
        return {name: self.device.download(self.value(name)) for name in self.graph.outputs}

    def magnitudes(self) -> dict[str, float]:
        """The largest absolute value in each floating-point value and constant of the graph. Runs the network.

        Masks count as zero: their lowest float32 is meant to be infinite, and is so in every type.
        """
        largest: dict[str, Tensor] = {}

        def look(name: str, tensor: Tensor) -> None:
            if tensor.is_floating_point() and tensor.numel():
                size = tensor.abs()
                largest[name] = size.masked_fill_(size >= _AS_GOOD_AS_INFINITE, 0.0).amax()

        with torch.inference_mode():
            for name, array in self.graph.constants.items():
                if array.dtype.kind == "f":
                    look(name, self.device.upload(array))
        self._run(look)
        return {name: float(value) for name, value in largest.items()}

    def _run(self, look: Callable[[str, Tensor], None] = lambda name, tensor: None) -> None:
        graph = self.graph
        values = {name: self.device.upload(array) for name, array in self.samples().items()}
        values |= {o: self.device.upload(graph.constants[o]) for o in graph.outputs if o in graph.constants}
        last_read = {v: index for index, node in enumerate(graph.nodes) for v in node.inputs}
        all_bytes = sum(
            graph.types[v].elements * graph.types[v].dtype.size_bytes for n in graph.nodes for v in n.outputs
        )
        held = None if all_bytes <= self.device.memory_bytes // _SHARE else self._expected
        with torch.inference_mode():
            for value in graph.inputs:
                look(value, values[value])
            for index, node in enumerate(graph.nodes):
                values |= run_layer(layer_of(graph, node), values, self.device)
                for value in node.outputs:
                    look(value, values[value])
                if held is not None:
                    done = (v for v in (*node.inputs, *node.outputs) if last_read.get(v, -1) <= index)
                    for value in set(done) - held:
                        values.pop(value, None)
        self._values = values


def run_layer(layer: Layer, values: Mapping[str, Tensor], device: Device) -> dict[str, Tensor]:
    """The outputs of a layer in float32, row-major, from its inputs by name; in inference mode only."""
    aten, node = Aten(), layer.node
    choice = next(iter(aten.choices(layer, device.info(), BuildConfig())))
    lowered = aten.lower(layer, choice)
    inputs = {v: (values[v], f) for v, f in zip(layer.values, choice.inputs, strict=True)}
    outputs = {v: (layer.types[v], f) for v, f in zip(node.outputs, choice.outputs, strict=True)}
    with watch(device, Suspect("the float32 reference", layer.name, aten.name)):
        trial = bind_trial(device, lowered, inputs, outputs)
        trial.run()
        device.synchronize()  # no candidate shall be blamed for it
    return {v: trial.slots[s] for v, s in zip(node.outputs, trial.outputs, strict=True)}


def _checked_sample(name: str, sample: np.ndarray, type_: TensorType) -> np.ndarray:
    if sample.shape != type_.shape:
        raise InputError(
            f"sample input '{name}' has the shape {list(sample.shape)}, the model takes {list(type_.shape)}",
            remedy="give a sample of the shape that the engine is built for",
        )
    if sample.dtype.kind == "f" and not np.isfinite(sample).all():
        raise InputError(f"sample input '{name}' holds NaN or infinity", remedy="give samples as they occur in use")
    return np.ascontiguousarray(sample).astype(type_.dtype.numpy)


def index_bounds(graph: Graph) -> dict[str, int]:
    """For each integer input used as an index, one more than the largest index that is valid."""
    bounds: dict[str, int] = {}
    aliases = {name: name for name in graph.inputs}
    for node in graph.nodes:
        source = next((aliases[v] for v in node.inputs[:1] if v in aliases), None)
        if source is not None and len(node.inputs) == 1 and not graph.types[node.output].dtype.is_float:
            aliases[node.output] = source
        if isinstance(node.op, Gather) and node.inputs[1] in aliases:
            extent = graph.types[node.inputs[0]].shape[node.op.axis]
            name = aliases[node.inputs[1]]
            bounds[name] = min(bounds.get(name, extent), extent)
    return bounds
