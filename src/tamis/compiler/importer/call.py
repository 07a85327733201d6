"""One ONNX node as the operator functions see it: resolved inputs and plain Python attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tamis.errors import InvalidModel


@dataclass(frozen=True)
class Call:
    """An ONNX node.

    ``inputs`` are names of values of the network being built, "" where an optional one is left out;
    ``outputs`` are ONNX's names, "" where nobody asked. ``opset`` is the version of the node's domain.
    """

    name: str
    op_type: str
    domain: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def input(self, index: int) -> str:
        """The value of a required input."""
        value = self.optional(index)
        if value is None:
            raise InvalidModel(f"{self.op_type} lacks its input {index}", layer=self.name)
        return value

    def optional(self, index: int) -> str | None:
        """The value of an input that may be left out, None when it is."""
        return (self.inputs[index] or None) if index < len(self.inputs) else None

    def wants(self, index: int) -> bool:
        """Whether the model names that output."""
        return index < len(self.outputs) and bool(self.outputs[index])

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self._attribute(name, default, int))

    def number(self, name: str, default: float) -> float:
        """A floating-point attribute."""
        return float(self._attribute(name, default, int | float))

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        return str(self._attribute(name, default, str))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that lists integers, None when it is left out."""
        value = self._attribute(name, None, tuple)
        return None if value is None else tuple(int(entry) for entry in value)

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """An attribute that lists numbers, None when it is left out."""
        value = self._attribute(name, None, tuple)
        return None if value is None else tuple(float(entry) for entry in value)

    def required(self, name: str) -> Any:
        """An attribute that must be there, in whatever type it has."""
        if name not in self.attributes:
            raise InvalidModel(f"{self.op_type} lacks its attribute '{name}'", layer=self.name)
        return self.attributes[name]

    def required_integer(self, name: str) -> int:
        """An integer attribute that must be there."""
        self.required(name)
        return self.integer(name, 0)

    def _attribute(self, name: str, default: Any, kind: Any) -> Any:
        value = self.attributes.get(name, default)
        if value is not default and not isinstance(value, kind):
            raise InvalidModel(f"attribute '{name}' of {self.op_type} is a {type(value).__name__}", layer=self.name)
        return value
