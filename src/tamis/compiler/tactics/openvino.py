"""Whole dense regions handed to OpenVINO, the fastest dense CPU runtime we measured.

The region is lowered to ONNX, read by OpenVINO's own front end and kept in the engine as OpenVINO's model file
(graph and weights); OpenVINO compiles it when the engine is loaded. Sparse weights run as dense ones here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.tactics.base import Choice, Lowered, flops_of, layer_of
from tamis.compiler.tactics.indices import index_limits, refuses_indices
from tamis.compiler.tactics.lowering import lower_to_onnx, refuses_lowering, to_openvino
from tamis.compiler.tactics.region import Region, runs_of
from tamis.devices.cpu.openvino import profile_region
from tamis.engine.plan import DeviceInfo, Format, Step


class OpenVino:
    """Dense regions in OpenVINO."""

    name = "openvino"

    def refuses(self, graph: Graph, node: Node, device: DeviceInfo, config: BuildConfig) -> str | None:
        """When OpenVINO is missing, the operator has no counterpart, or its indices could not be checked."""
        if device.kind != "cpu":
            return "runs on the CPU only"
        if importlib.util.find_spec("openvino") is None:
            return "OpenVINO is not installed (pip install openvino)"
        return refuses_lowering(node) or refuses_indices(graph, node)

    def regions(self, graph: Graph, able: frozenset[str]) -> tuple[Region, ...]:
        """The longest runs that OpenVINO can take; usually the whole network."""
        return runs_of(graph, able)

    def choices(self, graph: Graph, region: Region, device: DeviceInfo, config: BuildConfig) -> tuple[Choice, ...]:
        """Each allowed precision; the border is row-major, floating point crosses it as float32."""
        inputs = tuple(Format(graph.types[v].dtype) for v in region.inputs)
        outputs = tuple(Format(graph.types[v].dtype) for v in region.outputs)
        return tuple(Choice(self.name, precision, inputs, outputs) for precision in config.precisions)

    def lower(self, graph: Graph, region: Region, choice: Choice) -> Lowered:
        """One step with OpenVINO's model as two constants."""
        model = lower_to_onnx(graph, region.nodes, region.inputs, region.outputs)
        xml, weights = to_openvino(model, choice.precision)
        constants = {
            f"{region.name}.xml": np.frombuffer(xml, dtype=np.uint8),
            f"{region.name}.bin": np.frombuffer(weights, dtype=np.uint8),
        }
        limits = index_limits(graph, region.nodes, region.inputs)
        layers = [layer_of(graph, node) for node in region.nodes]
        moved = sum(graph.types[v].size_bytes for v in (*region.inputs, *region.outputs)) + len(weights)
        step = Step(
            region.name,
            "openvino.region",
            region.inputs,
            region.outputs,
            tuple(constants),
            {
                "precision": str(choice.precision),
                "alone": len(region.nodes) == len(graph.nodes),
                **({"index_limits": limits} if limits else {}),
            },
            tuple(node.name for node in region.nodes),
            choice.precision,
            flops=sum(flops_of(layer) for layer in layers),
            moved_bytes=moved,
        )
        return Lowered((step,), constants)

    def profile(
        self, graph: Graph, region: Region, choice: Choice, inputs: Sequence[np.ndarray], threads: int
    ) -> Mapping[str, float]:
        """OpenVINO's own per-node counters, mapped back to our layers."""
        lowered = self.lower(graph, region, choice)
        xml, weights = lowered.constants.values()
        return profile_region(xml.tobytes(), weights.copy(), choice.precision, threads, inputs)
