"""Where the weight of a compiled layer comes from: initializers of the ONNX model, and torch modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from tamis.compiler.importer.structure import node_label
from tamis.compiler.ir.graph import Node
from tamis.compiler.rescue import Model
from tamis.onnx_files.load import load_model
from tamis.sparsity import check_onnx


@dataclass(frozen=True)
class Source:
    """An initializer, and the torch module of the node that uses it (empty if the exporter did not write it down)."""

    weight: str
    module: str


def weight_sources(model: Model) -> dict[str, Source]:
    """The source of each weight, by the name that the importer gives the ONNX node which uses it.

    What a function of the model holds is not listed.
    """
    parsed = onnx.load(str(model)) if isinstance(model, str | Path) else load_model(model)[0]
    if not all(node.name for node in parsed.graph.node):
        if isinstance(model, onnx.ModelProto):
            parsed = onnx.ModelProto()
            parsed.CopyFrom(model)
        for index, node in enumerate(parsed.graph.node):
            node.name = node_label(node, index)
    return {check.node: Source(check.name, check.scope) for check in check_onnx(parsed)}


def sources_of(node: Node, sources: Mapping[str, Source]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The initializers and the torch modules of a compiled layer, which may be several of the model in one."""
    found = [sources[name] for name in node.origin if name in sources]
    modules = (source.module for source in found if source.module)
    return tuple(dict.fromkeys(source.weight for source in found)), tuple(dict.fromkeys(modules))
