"""Chains of small linear layers in one parallel region of our own kernels.

Networks such as the MLPs of a recommender are bound by dispatch and by waking threads, not by arithmetic. A
chain wakes the threads once and passes activations on in a workspace that stays in the cache. It also takes in
the joins (``chain_joins.py``) in front of its layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.ir.ops import Concat, Linear
from tamis.compiler.tactics.base import Choice, Layer, Lowered, flops_of, layer_of, moved_bytes_of
from tamis.compiler.tactics.chain_joins import Join, expanded, join_of, keeps_groups, refuses_join
from tamis.compiler.tactics.linear import (
    chain_attributes,
    levels_for,
    packed_layer,
    refuses_linear,
    split_program,
)
from tamis.compiler.tactics.product import rows_of
from tamis.compiler.tactics.region import Region, region_of
from tamis.engine.plan import DeviceInfo, Format, Sparsity, Step
from tamis.formats.dtype import DType

# Weights below this size stay in a core's second-level cache, from where dense ones come fast enough.
_SPARSE_PAYS_BYTES = 1 << 20


class TamisChain:
    """Runs of linear layers, each feeding only the next, perhaps joined with other values on the way."""

    name = "tamis.chain"

    def refuses(self, graph: Graph, node: Node, device: DeviceInfo, config: BuildConfig) -> str | None:
        """What single layers refuse, epilogues that need more than the kernel fuses, and most Concats."""
        if isinstance(node.op, Concat):
            return "runs on the CPU only" if device.kind != "cpu" else refuses_join(graph, node)
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
        """The longest chains of at least two layers, and what they fall into if they take no Concat in.

        A Concat may cost the layer behind it its 2:4 kernel, so the parts have to race as well.
        """
        readers = graph.consumers()
        found, start = [], 0
        for index in range(1, len(graph.nodes) + 1):
            ends = index == len(graph.nodes)
            if ends or not _continues(graph, readers, able, graph.nodes[index - 1], graph.nodes[index]):
                found += _chains(graph, start, index)
                start = index
        return tuple(found)

    def choices(self, graph: Graph, region: Region, device: DeviceInfo, config: BuildConfig) -> tuple[Choice, ...]:
        """Dense; 2:4 wherever eligible; 2:4 only where the weight exceeds the cache; in each precision."""
        links = _links(graph, region)
        found = []
        rows = rows_of(links[0].layer)
        for precision in config.precisions:
            for dtype in dict.fromkeys((precision, DType.FLOAT32)):
                inputs = (Format(dtype),) * len(region.inputs)
                for sparse in _sparse_sets(links, precision):
                    by_layer = {link.layer.name: "2:4" if link.layer.name in sparse else "dense" for link in links}
                    sparsity: Sparsity = "2:4" if sparse else "dense"
                    for isa in levels_for(precision, rows):
                        parameters = {"isa": isa, "sparsity_by_layer": by_layer}
                        found.append(Choice(self.name, precision, inputs, (Format(dtype),), sparsity, parameters))
        return tuple(found)

    def lower(self, graph: Graph, region: Region, choice: Choice) -> Lowered:
        """One step for the whole chain."""
        entries, pieces, joined = [], [], []
        flops = moved = 0
        constants: dict[str, np.ndarray] = {}
        for index, link in enumerate(_links(graph, region)):
            layer, join = link.layer, link.join
            sparsity = choice.parameters["sparsity_by_layer"][layer.name]
            packable = layer if join is None else _with_expanded_weight(layer, join)
            entry, packed = packed_layer(packable, choice.precision, sparsity, split_program(layer)[0])
            entries.append(entry)
            constants |= packed
            for part in join.parts[1:] if join is not None else ():
                pieces.append({"layer": index, "column": part.column, "columns": part.columns})
                joined.append(part.value)
            flops += flops_of(layer)
            border = Choice("", choice.precision, choice.inputs[:1], choice.outputs, sparsity)
            moved += moved_bytes_of(layer, border)
        x = region.inputs[0]
        step = Step(
            region.name,
            "tamis.chain",
            (x, *joined),
            region.outputs,
            tuple(constants),
            chain_attributes(entries, choice, graph.types[x].shape[-1], pieces),
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


@dataclass(frozen=True)
class _Link:
    """A linear layer of a chain and the join in front of it, if any."""

    layer: Layer
    join: Join | None

    @property
    def sparse(self) -> bool:
        """Whether the weight is still 2:4 where its columns lie within the chain."""
        return self.layer.eligible and (self.join is None or keeps_groups(self.join))


def _links(graph: Graph, region: Region) -> list[_Link]:
    links: list[_Link] = []
    concat, running = None, region.nodes[0].inputs[0]
    for node in region.nodes:
        if isinstance(node.op, Concat):
            concat = node
        else:
            join = None if concat is None else join_of(graph, concat, running)
            links.append(_Link(layer_of(graph, node), join))
            concat, running = None, node.output
    return links


def _continues(graph: Graph, readers: Mapping[str, list[Node]], able: frozenset[str], before: Node, node: Node) -> bool:
    """Whether ``node`` may follow ``before`` in a chain: it is the only one to read its result."""
    value = before.output
    if not {before.name, node.name} <= able or value in graph.outputs or readers.get(value) != [node]:
        return False
    if isinstance(node.op, Concat):
        return isinstance(before.op, Linear) and value in node.inputs
    return node.inputs[0] == value


def _chains(graph: Graph, start: int, stop: int) -> list[Region]:
    """The regions of a run: all of it, and the layers between its joins; a join at the end leads nowhere."""
    joins = [index for index in range(start, stop) if isinstance(graph.nodes[index].op, Concat)]
    whole = (start, stop - 1 if joins and joins[-1] == stop - 1 else stop)
    edges = [start - 1, *joins, stop]
    between = [(first + 1, last) for first, last in itertools.pairwise(edges)]
    return [region_of(graph, *part) for part in dict.fromkeys((whole, *between)) if part[1] - part[0] > 1]


def _with_expanded_weight(layer: Layer, join: Join) -> Layer:
    name = layer.node.inputs[1]
    return replace(layer, constants={**layer.constants, name: expanded(layer.constants[name], join)})


def _sparse_sets(links: Sequence[_Link], precision: DType) -> list[frozenset[str]]:
    eligible = [link.layer for link in links if link.sparse]
    large = [layer for layer in eligible if layer.type(1).elements * precision.size_bytes > _SPARSE_PAYS_BYTES]
    sets = (frozenset(layer.name for layer in layers) for layers in ((), eligible, large))
    return list(dict.fromkeys(sets))
