"""Torch-Pruning's dependency graph of a model (Fang et al., "DepGraph: Towards Any Structural Pruning", 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from tamis.errors import MissingLibrary, SparsityError, first_line


def torch_pruning(purpose: str) -> Any:
    """The library. Raises ``MissingLibrary``, which says what needs it: the `purpose`."""
    try:
        import torch_pruning as library  # noqa: PLC0415
    except ImportError as error:
        raise MissingLibrary(
            f"{purpose} needs Torch-Pruning", remedy="run \"pip install 'tamis[sparsity]'\""
        ) from error
    return library


def traced(library: Any, model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], *, remedy: str) -> Any:
    """The graph of a model, which is run once with gradients; its parameters need them.

    Raises ``SparsityError`` with this remedy where the model cannot be traced.
    """
    graph = library.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(
                model,
                arguments,
                forward_fn=lambda module, inputs: module(*inputs, **named),
                output_transform=_differentiable,
                verbose=False,
            )
    except Exception as error:
        raise SparsityError(
            f"Torch-Pruning cannot trace the model: {type(error).__name__}: {first_line(error)}", remedy=remedy
        ) from error
    return graph


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """The tensors in what a model returns."""
    return [leaf for leaf in _pytree.tree_leaves(outputs) if torch.is_tensor(leaf)]


def _differentiable(outputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tensors_of(outputs) if leaf.grad_fn is not None]
