"""NumPy meaning of the normalisations and of softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tamis.compiler.ir.ops import BatchNorm, GroupNorm, LayerNorm, Softmax

Arrays = Sequence[np.ndarray]


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """Softmax along ``axis``, shifted by the maximum."""
    exponents = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(exponents / exponents.sum(axis=axis, keepdims=True))


def _softmax(op: Softmax, inputs: Arrays) -> np.ndarray:
    x = inputs[0]
    if not op.log:
        return softmax(x, op.axis)
    shifted = x - x.max(axis=op.axis, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=op.axis, keepdims=True)))


def _layer_norm(op: LayerNorm, inputs: Arrays) -> tuple[np.ndarray, ...]:
    x = inputs[0] + inputs[-1] if op.residual else inputs[0]
    axes = tuple(range(x.ndim + op.axis, x.ndim))
    centred = x if op.rms else x - x.mean(axis=axes, keepdims=True)
    variance = (centred * centred).mean(axis=axes, keepdims=True)
    result = centred / np.sqrt(variance + x.dtype.type(op.epsilon))
    if op.scale:
        result = result * inputs[1]
    if op.bias:
        result = result + inputs[1 + op.scale]
    return (result, x) if op.residual else (result,)


def _channels(parameter: np.ndarray, rank: int) -> np.ndarray:
    return parameter.reshape(-1, *[1] * (rank - 2))


def _batch_norm(op: BatchNorm, inputs: Arrays) -> np.ndarray:
    x = inputs[0]
    scale, bias, mean, variance = (_channels(parameter, x.ndim) for parameter in inputs[1:])
    return np.asarray((x - mean) / np.sqrt(variance + variance.dtype.type(op.epsilon)) * scale + bias)


def _group_norm(op: GroupNorm, inputs: Arrays) -> np.ndarray:
    x, scale, bias = inputs
    cut = x.reshape(x.shape[0], op.groups, -1)
    centred = cut - cut.mean(axis=2, keepdims=True)
    variance = (centred * centred).mean(axis=2, keepdims=True)
    result = (centred / np.sqrt(variance + x.dtype.type(op.epsilon))).reshape(x.shape)
    return np.asarray(result * _channels(scale, x.ndim) + _channels(bias, x.ndim))


NORMALIZATION: Mapping[type, Callable[[Any, Arrays], Any]] = MappingProxyType(
    {Softmax: _softmax, LayerNorm: _layer_norm, BatchNorm: _batch_norm, GroupNorm: _group_norm}
)
