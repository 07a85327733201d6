"""Inputs made up for timing: never zeros, the same for the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tamis.engine.plan import Port
from tamis.errors import InputError


def random_inputs(
    ports: Sequence[Port], seed: int = 0, given: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """A tensor for each port: normal for floating point, 0 or 1 for integers and booleans.

    Integers are indices, token numbers or masks as a rule; 0 and 1 are valid for all of these. ``given``
    replaces the values of some inputs and must fit their ports. Raises ``InputError`` when it does not.
    """
    given = given or {}
    names = [port.name for port in ports]
    for name in given:
        if name not in names:
            raise InputError(f"there is no input '{name}'", remedy=f"the engine's inputs are {', '.join(names)}")
    generator = np.random.default_rng(seed)
    return {port.name: _fitted(port, given.get(port.name), _random(port, generator)) for port in ports}


def _random(port: Port, generator: np.random.Generator) -> np.ndarray:
    if port.dtype.is_float:
        return generator.standard_normal(port.shape, dtype=np.float32).astype(port.dtype.numpy)
    return generator.integers(0, 2, size=port.shape).astype(port.dtype.numpy)


def _fitted(port: Port, given: np.ndarray | None, drawn: np.ndarray) -> np.ndarray:
    if given is None:
        return drawn
    if given.shape != port.shape or given.dtype != drawn.dtype:
        fits = given.shape == port.shape
        raise InputError(
            f"input '{port.name}' is {given.dtype} {list(given.shape)}, expected {drawn.dtype} {list(port.shape)}",
            remedy=f"convert it to {drawn.dtype}" if fits else "give that shape, or build an engine for the other one",
        )
    return given
