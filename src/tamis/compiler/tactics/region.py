"""Regions: runs of layers that one tactic computes as a whole.

A region is a contiguous run of the graph's topological order, so whatever stands before it can run before it
and whatever stands after it can run after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.tactics.base import Choice, Lowered
from tamis.engine.plan import DeviceInfo


@dataclass(frozen=True)
class Region:
    """Nodes ``start`` to ``stop`` (exclusive) of a graph, with the values that cross its border."""

    start: int
    stop: int
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """A name for the step that runs the region."""
        first, last = self.nodes[0].name, self.nodes[-1].name
        return first if first == last else f"{first} .. {last}"


class RegionTactic(Protocol):
    """A family of implementations that can run several layers at once."""

    name: str

    def refuses(self, graph: Graph, node: Node, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Why a layer cannot be part of a region of this tactic, or None."""
        ...

    def regions(self, graph: Graph, able: frozenset[str]) -> tuple[Region, ...]:
        """Regions worth measuring from the start, made of layers named in ``able``."""
        ...

    def choices(self, graph: Graph, region: Region, device: DeviceInfo, config: BuildConfig) -> tuple[Choice, ...]:
        """The ways in which a region can run; formats are those of ``Region.inputs`` and ``Region.outputs``."""
        ...

    def lower(self, graph: Graph, region: Region, choice: Choice) -> Lowered:
        """The step that runs the region, with its constants."""
        ...

    def profile(
        self, graph: Graph, region: Region, choice: Choice, inputs: Sequence[np.ndarray], threads: int
    ) -> Mapping[str, float]:
        """Microseconds that each layer takes within the region, by layer name; empty when nobody can tell."""
        ...


def region_of(graph: Graph, start: int, stop: int) -> Region:
    """The region of nodes ``start`` to ``stop``; constants belong to it and do not cross its border."""
    nodes = graph.nodes[start:stop]
    made = {value for node in nodes for value in node.outputs}
    inputs = dict.fromkeys(v for node in nodes for v in node.inputs if v and v not in made and v not in graph.constants)
    later = {v for node in graph.nodes[stop:] for v in node.inputs} | set(graph.outputs)
    outputs = dict.fromkeys(v for node in nodes for v in node.outputs if v in later)
    return Region(start, stop, nodes, tuple(inputs), tuple(outputs))


def runs_of(graph: Graph, able: frozenset[str]) -> tuple[Region, ...]:
    """The longest runs of layers named in ``able``."""
    runs, start = [], None
    for index, node in enumerate((*graph.nodes, None)):
        inside = node is not None and node.name in able
        if inside and start is None:
            start = index
        elif not inside and start is not None:
            runs.append(region_of(graph, start, index))
            start = None
    return tuple(runs)
