"""The type of the functions that convert one ONNX node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.network import Network

# Adds to the network what the node means; returns the value of its output, or those of all its outputs, or
# None to leave the node to ONNX's own definition of it by simpler operators.
Convert: TypeAlias = Callable[[Network, Call], str | Sequence[str] | None]
