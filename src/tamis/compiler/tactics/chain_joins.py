"""Joins within a chain: a Concat that is never made, because its parts are packed beside each other.

The kernel takes the chain's own value first and every part at a multiple of 16 columns. So the columns of the
weight behind a Concat are moved, and columns of zeros fill the gaps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.ir.ops import Concat
from tamis.formats.dtype import DType
from tamis.formats.pattern import TWO_FOUR
from tamis.formats.tiles import TILE_N


@dataclass(frozen=True)
class Part:
    """One input of a Concat: its columns, from ``source`` on in the Concat and from ``column`` on in the chain."""

    value: str
    columns: int
    source: int
    column: int


@dataclass(frozen=True)
class Join:
    """The parts of a Concat in the order in which the chain has them, its own value first."""

    parts: tuple[Part, ...]

    @property
    def k(self) -> int:
        """Input columns of the layer behind the join, gaps included."""
        return self.parts[-1].column + self.parts[-1].columns


def refuses_join(graph: Graph, node: Node) -> str | None:
    """Why a Concat cannot be part of a chain, wherever it stands, or None."""
    assert isinstance(node.op, Concat)
    types = [graph.types[value] for value in node.inputs]
    if node.op.axis != len(types[0].shape) - 1:
        return "it does not join along the last axis"
    if any(value in graph.constants for value in node.inputs):
        return "it joins constants"
    if len(set(node.inputs)) < max(2, len(node.inputs)):
        return "it joins a value with itself"
    if any(type_.dtype != DType.FLOAT32 or not type_.elements for type_ in types):
        return "it joins values without elements or other types than float32"
    return None


def join_of(graph: Graph, concat: Node, running: str) -> Join:
    """The join of a Concat; ``running`` is the one of its inputs that is the chain's own value."""
    widths = [graph.types[value].shape[-1] for value in concat.inputs]
    sources = dict(zip(concat.inputs, itertools.accumulate(widths, initial=0), strict=False))
    parts, column = [], 0
    for value in sorted(concat.inputs, key=lambda value: value != running):  # stable: the others stay in order
        columns = graph.types[value].shape[-1]
        parts.append(Part(value, columns, sources[value], column))
        column += -(-columns // TILE_N) * TILE_N
    return Join(tuple(parts))


def expanded(weight: np.ndarray, join: Join) -> np.ndarray:
    """A weight ``[n, k]`` of the Concat's columns as ``[n, join.k]`` of the chain's."""
    result = np.zeros((weight.shape[0], join.k), weight.dtype)
    for part in join.parts:
        result[:, part.column : part.column + part.columns] = weight[:, part.source : part.source + part.columns]
    return result


def keeps_groups(join: Join) -> bool:
    """Whether every group of four columns of the Concat is a group of four columns of the chain too.

    The part that ends the Concat may end in a shorter group: behind it lie zeros.
    """
    end = max(part.source + part.columns for part in join.parts)
    return all(
        part.source % TWO_FOUR.m == 0 and (part.columns % TWO_FOUR.m == 0 or part.source + part.columns == end)
        for part in join.parts
    )
