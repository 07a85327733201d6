"""Attention layers, and stand-ins on the CPU for the libraries that run them on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tamis.compiler.ir.graph import Node, TensorType
from tamis.compiler.ir.ops import Attention
from tamis.compiler.tactics.base import Layer
from tamis.formats.dtype import DType


def attention_layer(
    *shapes: tuple[int, ...], mask: DType = DType.FLOAT32, constants: dict[str, np.ndarray] | None = None
) -> Layer:
    """A layer of queries, keys, values and perhaps a mask."""
    names = ("q", "k", "v", "m")[: len(shapes)]
    kinds = (DType.FLOAT32, DType.FLOAT32, DType.FLOAT32, mask)[: len(shapes)]
    types = {name: TensorType(shape, kind) for name, shape, kind in zip(names, shapes, kinds, strict=True)}
    types["y"] = TensorType((*shapes[0][:-1], shapes[2][-1]))
    op = Attention(0.25, len(shapes) == 4)
    return Layer(Node("attend", op, names, ("y",)), types, constants or {})


@dataclass(frozen=True)
class Calls:
    """Who was called, and the strides and misalignment in bytes of all queries, keys and values."""

    backends: list[str] = field(default_factory=list)
    operands: list[tuple[tuple[int, ...], int]] = field(default_factory=list)


@contextmanager
def attention_on_the_cpu(*, by_head: bool = False) -> Iterator[Calls]:
    """cuDNN's and FlashAttention's operators for tensors of the CPU, as PyTorch declares them.

    The result lies in the order of the queries, as theirs does; ``by_head``: always as [B, H, S, D], as it might in a
    later version.
    """
    calls = Calls()

    def attend(name: str, q: Any, k: Any, v: Any, bias: Any, scale: float | None) -> tuple[Any, ...]:
        calls.backends.append(name)
        calls.operands.extend((t.stride(), t.data_ptr() % 16) for t in (q, k, v))
        assert scale is not None and (bias is None or bias.dim() == 4)
        result = torch.nn.functional.scaled_dot_product_attention(
            *(t.float().contiguous() for t in (q, k, v)), None if bias is None else bias.float(), scale=scale
        )
        out = torch.empty(q.shape, dtype=q.dtype) if by_head else torch.empty_like(q)
        none = torch.empty(0)
        return out.copy_(result), none, none, none, q.shape[2], k.shape[2], none, none, none

    # PyTorch leaves out arguments that have their default.
    def cudnn(q: Any, k: Any, v: Any, bias: Any, lse: bool, *rest: object, scale: float | None = None) -> Any:
        assert not lse and not any(rest)
        return attend("cudnn", q, k, v, bias, scale)

    def flash(q: Any, k: Any, v: Any, *rest: object, scale: float | None = None) -> Any:
        assert not any(rest)
        return attend("flash", q, k, v, None, scale)

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_scaled_dot_product_cudnn_attention", cudnn, "CPU")
        library.impl("_scaled_dot_product_flash_attention", flash, "CPU")
        yield calls
