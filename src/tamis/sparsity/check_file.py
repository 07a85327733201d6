"""Check a file of weights, whatever wrote it: ONNX, safetensors, or a checkpoint of PyTorch."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tamis.errors import InvalidModel, first_line
from tamis.formats import NM
from tamis.sparsity.check import LayerCheck, Progress
from tamis.sparsity.check_onnx import check_graph
from tamis.sparsity.check_state import check_state_dict
from tamis.sparsity.masks import as_pattern
from tamis.sparsity.onnx_graph import open_graph
from tamis.sparsity.onnx_layers import unjudged

# Where trainers keep the weights in their checkpoints, the surest names first.
_WEIGHT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
)
_EXPECTED = "give an ONNX file, a .safetensors file, or a state dict of PyTorch"
_SAVE_WEIGHTS = "save the weights alone, with torch.save(model.state_dict(), path), or give package.module:factory"


@dataclass(frozen=True)
class FileCheck:
    """What was found in a file.

    Attributes:
        kind: `"onnx"`, `"safetensors"` or `"torch"`.
        layers: as `check_onnx` or `check_state_dict` gives them.
        notes: what the reader should know: which part of a checkpoint was taken, what was not looked into.
    """

    kind: str
    layers: tuple[LayerCheck, ...]
    notes: tuple[str, ...] = ()


def check_file(
    path: str | os.PathLike[str], pattern: str | NM = "2:4", *, progress: Progress | None = None
) -> FileCheck:
    """Check the weights of a file, told apart by its first bytes.

    Weights are mapped into memory and looked at one after the other. Pickles are read by PyTorch's restricted loader,
    which runs no code.

    Args:
        path: an ONNX file with its external data beside it, a safetensors file, or what `torch.save` wrote: a state
            dict, or a checkpoint that holds one under a key such as `state_dict` or `model`.
        pattern: the pattern to look for.
        progress: called with ("check", what is done, how much there is, a name).

    Raises:
        InvalidModel: the file is missing, damaged, of another kind, or holds no weights.
    """
    wanted, file = as_pattern(pattern), Path(path)
    beginning = _beginning(file)
    if beginning.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        check = _check_torch(file, wanted, zipped=beginning.startswith(b"PK"), progress=progress)
    elif file.suffix == ".safetensors" or beginning[8:9] == b"{":
        check = _check_safetensors(file, wanted, progress)
    elif file.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise InvalidModel(f"'{file}' is not a file of torch.save, or is damaged", remedy=_EXPECTED)
    else:
        check = _check_onnx(file, wanted, progress)
    if not check.layers:
        raise InvalidModel(f"'{file}' holds no layer with weights", remedy="check which file it is")
    return check


def _beginning(file: Path) -> bytes:
    try:
        if file.is_dir():
            raise InvalidModel(f"'{file}' is a directory", remedy="give one of the files in it")
        with file.open("rb") as opened:
            beginning = opened.read(64)
    except FileNotFoundError:
        raise InvalidModel(f"'{file}' does not exist", remedy=_EXPECTED) from None
    except (OSError, ValueError) as error:
        raise InvalidModel(f"'{file}' cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not beginning:
        raise InvalidModel(f"'{file}' is empty", remedy=_EXPECTED)
    if beginning.startswith(b"{"):
        raise InvalidModel(
            f"'{file}' is JSON, no file of weights", remedy="check each of the files that an index names"
        )
    if file.suffix == ".npz":
        raise InvalidModel(f"'{file}' is an archive of NumPy arrays", remedy=_EXPECTED)
    if beginning[8:].startswith(b'{"__metadata__":{"digest"'):
        raise InvalidModel(f"'{file}' is an engine", remedy="look at it with 'tamis explain', and check its model")
    return beginning


def _check_onnx(file: Path, pattern: NM, progress: Progress | None) -> FileCheck:
    _, graph, _ = open_graph(file)
    layers = check_graph(graph, pattern, progress)
    others = ", ".join(f"{count} {operator}" for operator, count in sorted(unjudged(graph).items()))
    notes = (f"not looked into: the weights of {others}",) if others else ()
    return FileCheck("onnx", layers, notes)


def _check_safetensors(file: Path, pattern: NM, progress: Progress | None) -> FileCheck:
    try:
        with safe_open(str(file), framework="pt") as opened:
            layers = check_state_dict(_Lazy(opened), pattern, progress=progress)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise InvalidModel(
            f"'{file}' is not a safetensors file, or is damaged: {first_line(error)}", remedy="copy it again"
        ) from error
    return FileCheck("safetensors", layers)


class _Lazy(Mapping[str, torch.Tensor]):
    """The tensors of an open safetensors file, each read when it is asked for."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self._names = dict.fromkeys(opened.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: torch.Tensor = self._opened.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_torch(file: Path, pattern: NM, *, zipped: bool, progress: Progress | None) -> FileCheck:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        raise InvalidModel(
            f"'{file}' holds code or objects, not weights alone, and is not loaded: {_what_it_holds(error)}",
            remedy=_SAVE_WEIGHTS,
        ) from error
    except Exception as error:  # what a damaged file makes the readers of zip archives and pickles raise
        script = "TorchScript" in str(error)
        cause = "is a TorchScript archive" if script else f"is damaged: {first_line(error)}"
        raise InvalidModel(f"'{file}' {cause}", remedy=_SAVE_WEIGHTS if script else "copy it again") from error
    weights, key = _weights_of(loaded, file)
    others = [str(other) for other in loaded if other != key] if key else []
    notes = (f"the weights under '{key}' were checked; the file also holds {', '.join(others)}",) if others else ()
    return FileCheck("torch", check_state_dict(weights, pattern, progress=progress), notes)


def _what_it_holds(error: Exception) -> str:
    """The class that the restricted loader refused, out of a page of advice."""
    _, found, rest = str(error).partition("GLOBAL ")
    return rest.split()[0] if found and rest.split() else first_line(error)


def _weights_of(loaded: Any, file: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The state dict of a checkpoint, and the key that it stands under, empty for the whole file."""
    if isinstance(loaded, Mapping):
        for key in _WEIGHT_KEYS:
            held = loaded.get(key)
            held = held.get("state_dict", held) if isinstance(held, Mapping) else held
            if isinstance(held, Mapping) and (tensors := _tensors(held)):
                return tensors, key
        if tensors := _tensors(loaded):
            return tensors, ""
        holds = f"it holds {', '.join(map(str, list(loaded)[:8])) or 'nothing'}"
    else:
        holds = f"it holds a {type(loaded).__name__}"
    raise InvalidModel(f"'{file}' has no state dict that Tamis knows: {holds}", remedy=_SAVE_WEIGHTS)


def _tensors(loaded: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
