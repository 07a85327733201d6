"""Linear layers, matrix products, attention and Einstein sums by torch's general kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tamis.devices.aten.binding import Argument, Binding, Prepared, broadcast, same_type
from tamis.devices.aten.pointwise import nn, with_epilogue


def linear(binding: Binding) -> Prepared:
    """``aten.linear``: ``x @ w.T + bias`` and the epilogue."""
    count = 3 if binding.attributes.get("bias") else 2
    arguments = same_type(binding, [binding.argument(index) for index in range(count)])
    x, weight = arguments[:2]
    shape = (*x.shape[:-1], weight.shape[0])
    return with_epilogue(binding, nn.linear, arguments, shape=shape, dtype=x.dtype, into=nn.linear)


def mat_mul(binding: Binding) -> Prepared:
    """``aten.mat_mul``: NumPy's matrix product and the epilogue."""
    arguments = same_type(binding, [binding.argument(0), binding.argument(1)])
    shape = _product_shape(arguments[0].shape, arguments[1].shape)
    dtype = arguments[0].dtype
    return with_epilogue(binding, torch.matmul, arguments, shape=shape, dtype=dtype, into=torch.matmul)


def _product_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    if len(a) == 1 and len(b) == 1:
        return ()
    if len(a) == 1:
        return (*b[:-2], b[-1])
    if len(b) == 1:
        return a[:-1]
    return (*broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def attention(binding: Binding) -> Prepared:
    """``aten.attention``: ``softmax(scale q k^T + mask) v``; a boolean mask keeps where it is True.

    torch wants equal leading axes and has its fast kernel for rank four, so others are reshaped.
    """
    scale = float(binding.attributes["scale"])
    q, k, v = same_type(binding, [binding.argument(index) for index in range(3)])
    arguments: tuple[Argument, ...] = (q, k, v)
    sdpa: Any = nn.scaled_dot_product_attention
    if binding.attributes.get("mask"):
        arguments = (*arguments, _float_mask(binding, q.dtype))
    batch = broadcast(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    plain = len(batch) == 2 and all(a.shape[:-2] == batch for a in (q, k, v))
    if plain and (len(arguments) == 3 or len(arguments[3].shape) in (2, 4)):
        if len(arguments) == 3:
            return Prepared(lambda q, k, v: sdpa(q, k, v, None, 0.0, False, scale=scale), arguments)
        return Prepared(lambda q, k, v, mask: sdpa(q, k, v, mask, 0.0, False, scale=scale), arguments)
    scores = (*batch, q.shape[-2], k.shape[-2])
    return Prepared(_general_attention(batch, scores, binding.output_shape, scale), arguments)


def _float_mask(binding: Binding, dtype: torch.dtype) -> Argument:
    mask = binding.argument(3)
    if mask.dtype is torch.bool or mask.dtype is dtype:
        return mask
    return same_type(binding, [Argument((), dtype), mask])[1]


def _general_attention(
    batch: tuple[int, ...], scores: tuple[int, ...], shape: tuple[int, ...], scale: float
) -> Callable[..., Any]:
    """Any number of leading axes, with broadcasting: bring everything to rank four."""
    sdpa: Any = nn.scaled_dot_product_attention

    def four(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.expand(*batch, *tensor.shape[-2:]).reshape(1, -1, *tensor.shape[-2:])

    def run(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
        if mask is not None:
            mask = mask.expand(scores).reshape(1, -1, *scores[-2:])
        return sdpa(four(q), four(k), four(v), mask, 0.0, False, scale=scale).reshape(shape)

    return run


def einsum(binding: Binding) -> Prepared:
    """``aten.einsum``."""
    equation = str(binding.attributes["equation"]).replace(" ", "")
    arguments = same_type(binding, binding.present())
    return Prepared(lambda *tensors: torch.einsum(equation, *tensors), arguments)
