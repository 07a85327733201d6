"""Chains of small linear layers in one parallel region of our own kernels.

Networks such as the MLPs of a recommender are bound by dispatch and by waking threads, not by arithmetic. A
chain wakes the threads once and passes activations on in a workspace that stays in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.ir.ops import Linear
from tamis.compiler.tactics.base import Choice, Layer, Lowered, flops_of, layer_of, moved_bytes_of
from tamis.compiler.tactics.linear import (
    chain_attributes,
    levels_for,
    packed_layer,
    refuses_linear,
    rows_of,
    split_program,
)
from tamis.compiler.tactics.region import Region, region_of
from tamis.engine.plan import DeviceInfo, Format, Sparsity, Step
from tamis.formats.dtype import DType

# Weights below this size stay in a core's second-level cache, from where dense ones come fast enough.
_SPARSE_PAYS_BYTES = 1 << 20


class TamisChain:
    """Runs of linear layers, each feeding only the next."""

    name = "tamis.chain"

    def refuses(self, graph: Graph, node: Node, device: DeviceInfo, config: BuildConfig) -> str | None:
        """What single layers refuse, and epilogues that need more than the kernel fuses."""
        if not isinstance(node.op, Linear):
            return f"{type(node.op).__name__} is not a linear layer"
        layer = layer_of(graph, node)
        reason = refuses_linear(layer, device)
        if reason is not None:
            return reason
        fused, tail = split_program(layer)
        if tail or any(step.operand is not None for step in fused):
            return "its epilogue reads other values or has steps that the kernel cannot fuse"
        return None

    def regions(self, graph: Graph, able: frozenset[str]) -> tuple[Region, ...]:
        """The longest chains of at least two layers."""
        readers = graph.consumers()
        found, start = [], 0
        for index, node in enumerate(graph.nodes):
            before = graph.nodes[index - 1] if index else None
            continues = (
                before is not None
                and node.name in able
                and before.name in able
                and node.inputs[0] == before.output
                and [n.name for n in readers[before.output]] == [node.name]
                and before.output not in graph.outputs
            )
            if not continues:
                if index - start > 1:
                    found.append(region_of(graph, start, index))
                start = index
        if len(graph.nodes) - start > 1:
            found.append(region_of(graph, start, len(graph.nodes)))
        return tuple(found)

    def choices(self, graph: Graph, region: Region, config: BuildConfig) -> tuple[Choice, ...]:
        """Dense; 2:4 wherever eligible; 2:4 only where the weight exceeds the cache; in each precision."""
        layers = [layer_of(graph, node) for node in region.nodes]
        found = []
        rows = rows_of(layers[0])
        for precision in config.precisions:
            for dtype in dict.fromkeys((precision, DType.FLOAT32)):
                for sparse in _sparse_sets(layers, precision):
                    by_layer = {n.name: "2:4" if n.name in sparse else "dense" for n in region.nodes}
                    sparsity: Sparsity = "2:4" if sparse else "dense"
                    border = (Format(dtype),)
                    for isa in levels_for(precision, rows):
                        parameters = {"isa": isa, "sparsity_by_layer": by_layer}
                        found.append(Choice(self.name, precision, border, border, sparsity, parameters))
        return tuple(found)

    def lower(self, graph: Graph, region: Region, choice: Choice) -> Lowered:
        """One step for the whole chain."""
        entries, flops, moved = [], 0, 0
        constants: dict[str, np.ndarray] = {}
        for node in region.nodes:
            layer = layer_of(graph, node)
            sparsity = choice.parameters["sparsity_by_layer"][node.name]
            entry, packed = packed_layer(layer, choice.precision, sparsity, split_program(layer)[0])
            entries.append(entry)
            constants |= packed
            flops += flops_of(layer)
            border = Choice("", choice.precision, choice.inputs, choice.outputs, sparsity)
            moved += moved_bytes_of(layer, border)
        step = Step(
            region.name,
            "tamis.chain",
            region.inputs,
            region.outputs,
            tuple(constants),
            chain_attributes(entries, choice),
            tuple(node.name for node in region.nodes),
            choice.precision,
            choice.sparsity,
            flops,
            moved,
        )
        return Lowered((step,), constants)

    def profile(
        self, graph: Graph, region: Region, choice: Choice, inputs: Sequence[np.ndarray], threads: int
    ) -> Mapping[str, float]:
        """Unknown: the layers of a chain are not timed apart."""
        return {}


def _sparse_sets(layers: Sequence[Layer], precision: DType) -> list[frozenset[str]]:
    eligible = frozenset(layer.name for layer in layers if layer.eligible)
    large = frozenset(
        layer.name
        for layer in layers
        if layer.eligible and layer.type(1).elements * precision.size_bytes > _SPARSE_PAYS_BYTES
    )
    return list(dict.fromkeys((frozenset(), eligible, large)))
