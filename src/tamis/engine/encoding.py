"""Frozen data as JSON and back, by the types of its fields; what does not fit them exactly is refused."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from tamis.formats.dtype import DType

_MOST_NAMES = 3


def encode(value: Any) -> Any:
    """Dataclasses, mappings, sequences and element types as what ``json`` can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, DType):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: Any, data: Any) -> Any:
    """The inverse of ``encode`` for a type; ``ValueError``, ``TypeError`` or ``KeyError`` for what is not one."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _fields_of(kind)
        if set(data) != set(hints):
            raise ValueError(_wrong_fields(kind.__name__, set(hints), set(data)))
        return kind(**{name: decode(hint, data[name]) for name, hint in hints.items()})
    if origin is tuple:
        return tuple(decode(arguments[0], item) for item in data)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        return decode(next(a for a in arguments if a is not type(None)), data)
    if kind is DType:
        return DType(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if origin is Literal and data not in arguments:
        raise ValueError(f"{data!r} is not one of {arguments}")
    if isinstance(kind, type) and origin is None and kind is not Any and not isinstance(data, kind):
        raise ValueError(f"{data!r} is not of type {kind.__name__}")
    return data


@functools.cache
def _fields_of(kind: type) -> Mapping[str, Any]:
    """The type of each field. Evaluating them takes longer than all the rest, and a plan holds thousands of objects."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _wrong_fields(kind: str, known: set[str], given: set[str]) -> str:
    """What is wrong, in words: as a rule the file is of another kind or version, and then many fields are."""
    missing = sorted(known - given)
    names = missing or sorted(given - known)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{kind} {'lacks' if missing else 'has unknown fields:'} {', '.join(names[:_MOST_NAMES])}{more}"
