"""Which layers a user means by patterns of names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from tamis.errors import ConfigError
from tamis.sparsity.check import LayerCheck

SOME_NAMES = 3
JOINED = " + "  # between the names of tensors that make up one weight


def named(layer: LayerCheck, patterns: Iterable[str]) -> bool:
    """Whether a layer's weight, its node or its torch module matches one of the patterns (`*`, `?`, `[...]`)."""
    names = [name for name in (layer.name, *layer.name.split(JOINED), layer.node, layer.scope) if name]
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns for name in names)


def require_named(layers: Sequence[LayerCheck], patterns: Iterable[str], option: str) -> None:
    """Raise `ConfigError` if a pattern matches no layer: it is mistyped, or meant for another model."""
    for pattern in patterns:
        if not any(named(layer, (pattern,)) for layer in layers):
            some = ", ".join(layer.name for layer in layers[:SOME_NAMES])
            more = f" and {len(layers) - SOME_NAMES} more" if len(layers) > SOME_NAMES else ""
            raise ConfigError(f"{option} '{pattern}' matches no layer", remedy=f"the weights are {some}{more}")
