"""Save and load models whose layers became smaller, without pickle.

The file is safetensors: the tensors of the state dict, and as metadata the sizes that each module keeps beside its
tensors. It is loaded into the model as its code builds it, unpruned, whose layers are made smaller first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn.utils import parametrize

from tamis.errors import SparsityError
from tamis.files import replaced_file

_VERSION = 1
_KEY = "tamis.channels"
_SIZES = (
    *("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels"),
    *("num_groups", "normalized_shape", "num_parameters", "num_embeddings", "embedding_dim"),
    *("embed_dim", "num_heads", "head_dim", "kdim", "vdim"),
)


def save_channels(model: nn.Module, path: str | Path) -> None:
    """Write a model, and the sizes of its layers, as safetensors; an existing file is replaced at once or not at all.

    Raises:
        SparsityError: masks are still held.
        OutputError: the file cannot be written.
    """
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise SparsityError("its weight is computed when it is read", layer=name, remedy="call finalize first")
    modules = {
        name: [type(module).__name__, {key: getattr(module, key) for key in _SIZES if hasattr(module, key)}]
        for name, module in model.named_modules()
    }
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in model.state_dict().items()}
    text = json.dumps({"version": _VERSION, "modules": modules})
    content = save(tensors, metadata={_KEY: text})
    with replaced_file(path) as file:
        file.write(content)


def load_channels(model: nn.Module, path: str | Path) -> None:
    """Make the layers of an unpruned model as small as those in the file, and load them.

    Args:
        model: built by the same code as the one that was pruned; changed in place, on the devices it is on.
        path: what `save_channels` wrote.

    Raises:
        SparsityError: the file is none of these, or of another architecture; the model is then as it was.
    """
    modules, tensors = _read(Path(path))
    own = dict(model.named_modules())
    for name, (kind, _) in modules.items():
        if name not in own or type(own[name]).__name__ != kind:
            there = type(own[name]).__name__ if name in own else "not there"
            raise _other_model(path, f"a {kind} in the file, {there} in the model", name)
    state = model.state_dict(keep_vars=True)
    for key in (*state, *tensors):
        if key not in state or key not in tensors:
            raise _other_model(path, f"only in the {'model' if key in state else 'file'}", key)
    for key, tensor in tensors.items():
        mine = state[key]
        if tensor.ndim != mine.ndim or any(new > old for new, old in zip(tensor.shape, mine.shape, strict=True)):
            raise _other_model(path, f"{list(tensor.shape)} in the file, but {list(mine.shape)} in the model", key)
    _check_sizes(own, modules, path)
    replaced: dict[int, nn.Parameter] = {}  # tensors that are shared stay so
    for key, tensor in tensors.items():
        owner, _, name = key.rpartition(".")
        mine = state[key]
        value = tensor.to(mine.device, mine.dtype)
        if isinstance(mine, nn.Parameter):
            value = replaced.setdefault(id(mine), nn.Parameter(value, mine.requires_grad))
        setattr(own[owner], name, value)
    for name, (_, sizes) in modules.items():
        for key, size in sizes.items():
            setattr(own[name], key, tuple(size) if isinstance(size, list) else size)


def _read(path: Path) -> tuple[dict[str, tuple[str, dict[str, Any]]], dict[str, torch.Tensor]]:
    remedy = "give a file that save_channels wrote"
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SparsityError(f"cannot read '{path}': {error}", remedy=remedy) from error
    try:
        data = json.loads(text or "{}")
        if not isinstance(data, dict) or data.get("version") != _VERSION:
            raise SparsityError(f"'{path}' does not say the sizes of its layers", remedy=remedy)
        return {name: (kind, dict(sizes)) for name, (kind, sizes) in data["modules"].items()}, tensors
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SparsityError(f"what '{path}' says of its layers is damaged: {error!r}", remedy=remedy) from error


def _check_sizes(own: dict[str, nn.Module], modules: dict[str, tuple[str, dict[str, Any]]], path: str | Path) -> None:
    """Raise `SparsityError` for attributes and sizes that removing channels does not lead to."""
    for name, (_, sizes) in modules.items():
        for key, size in sizes.items():
            present = getattr(own[name], key, None)
            if key not in _SIZES or not _can_become(size, present):
                raise _other_model(path, f"{key} is {size!r} in the file, {present!r} in the model", name)


def _can_become(new: Any, old: Any) -> bool:
    """Whether a size of a module may be `new`, as JSON has it, after channels were removed."""
    if isinstance(old, tuple | list):
        return isinstance(new, list) and len(new) == len(old) and all(map(_can_become, new, old))
    return type(new) is type(old) and (new == old or (type(new) is int and 0 < new < old))


def _other_model(path: str | Path, cause: str, layer: str) -> SparsityError:
    return SparsityError(
        f"'{path}' is of another architecture: {cause}",
        layer=layer or "the whole model",
        remedy="build the model as it was before its channels were pruned",
    )
