"""Check a state dict: only names, shapes and numbers are known of the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from tamis.errors import InvalidModel
from tamis.formats import NM
from tamis.sparsity.check import PACKED, PRUNED, LayerCheck, Progress, judge, nonzeros
from tamis.sparsity.masks import NO_ELEMENTS, as_pattern, axis_misfit, unlike

_PARAMETRISED = ".parametrizations."
_UNKNOWN = (
    "its weight is computed by a parametrisation, and a state dict does not say which; call remove_parametrizations "
    "before it is saved, or check the module"
)
_SPECTRAL = {"_u", "_v"}  # what a spectral norm keeps; it only scales


@dataclass(frozen=True)
class _Weight:
    """A weight as a state dict holds it.

    Attributes:
        name: as in the state dict of a model of plain parameters.
        tensor: the weight, as far as it is known.
        run_time: what makes its zeros when the model runs, where what is stored lacks them.
        unknown: why it is not known at all.
    """

    name: str
    tensor: torch.Tensor
    run_time: str | None = None
    unknown: str | None = None


def check_state_dict(
    state: Mapping[str, torch.Tensor], pattern: str | NM = "2:4", *, progress: Progress | None = None
) -> tuple[LayerCheck, ...]:
    """Check a state dict, for which only names and shapes are known.

    Every tensor called `*weight` of two to five axes is taken for a linear or convolution weight that reduces
    over axis 1; embeddings look the same, and transposed convolutions are misjudged: check the model itself
    where you have it. Masks stored beside their weights (by `prune` or `torch.nn.utils.prune`) are applied. Of weight
    norms the weight is judged that they give, of spectral norms the one they scale; what other parametrisations give is
    not in a state dict, which then is the reason against a layer.
    `progress` is called with ("check", tensors done, tensors in all, name of the tensor).

    Raises:
        InvalidModel: a mask, or the length of a weight norm, does not fit its weight.
    """
    wanted = as_pattern(pattern)
    checks = []
    for done, key in enumerate(state):
        if progress:
            progress("check", done, len(state), key)
        if _name(key, state) and (weight := _weight(key, state)) and 2 <= weight.tensor.ndim <= 5:
            checks.append(_check(weight, wanted))
    return tuple(checks)


def _check(weight: _Weight, pattern: NM) -> LayerCheck:
    nonzero = nonzeros(weight.tensor)
    misfit = axis_misfit(nonzero.shape[1], 1, pattern, matrix=nonzero.ndim == 2) if nonzero.size else NO_ELEMENTS
    misfit = _undecodable(weight.tensor) or misfit
    check = judge(nonzero, 1, pattern, misfit=misfit, run_time=weight.run_time, name=weight.name, op="")
    return replace(check, reason=weight.unknown) if weight.unknown and check.fits else check


def _name(key: str, state: Mapping[str, torch.Tensor]) -> str | None:
    """The plain name of the weight that is told of under `key`; None if it is told of elsewhere, or is no weight."""
    module, marker, rest = f".{key}".rpartition(_PARAMETRISED)
    if marker:
        parameter, _, part = rest.partition(".")
        name = f"{module}.{parameter}"[1:]
        return name if part in ("original", "original0") and name.endswith("weight") else None
    for suffix, others in (("_orig", ("_mask", "_u")), ("_v", ("_g",))):
        name = key.removesuffix(suffix)
        if name != key and name.endswith("weight") and any(f"{name}{other}" in state for other in others):
            return name
    return key if key.endswith("weight") else None


def _weight(key: str, state: Mapping[str, torch.Tensor]) -> _Weight:
    """The weight that is told of under `key`, from all that the state dict has of it."""
    name, tensor = _name(key, state) or key, state[key]
    if f".{key}".rpartition(_PARAMETRISED)[1]:
        return _parametrised(name, key.rpartition("original")[0], state)
    if key == name:
        return _Weight(name, tensor)
    if key == f"{name}_v":
        return _Weight(name, _normed(name, tensor, state[f"{name}_g"]))
    if f"{name}_mask" in state:
        return _Weight(name, _masked(name, tensor, state[f"{name}_mask"]), run_time=PRUNED)
    return _Weight(name, tensor)  # a spectral norm: up to a scale


def _parametrised(name: str, prefix: str, state: Mapping[str, torch.Tensor]) -> _Weight:
    """A weight with its chain of parametrisations, of which those without tensors leave a gap in the numbering."""
    entries = sorted(key.removeprefix(prefix) for key in state if key.startswith(prefix))
    originals = [state[f"{prefix}{entry}"] for entry in entries if entry.startswith("original")]
    chain: dict[int, set[str]] = {}
    for entry in entries:
        place, _, part = entry.partition(".")
        if place.isdecimal():
            chain.setdefault(int(place), set()).add(part)
    weight, normed = originals[0], len(originals) == 2 and _is_norm(*originals)
    if normed:
        weight = _normed(name, originals[1], originals[0])
    present = sorted(place for place, parts in chain.items() if parts in ({"mask"}, _SPECTRAL))
    known = (normed or len(originals) == 1) and present == list(range(normed, len(chain) + normed))
    masks = [state[f"{prefix}{place}.mask"] for place in present if chain[place] == {"mask"}]
    if not known and masks and chain[max(chain)] == {"mask"}:
        return _Weight(name, masks[-1])  # zero at least where the last mask is
    for mask in masks:
        weight = _masked(name, weight, mask)
    return _Weight(name, weight, unknown=None if known and (normed or chain) else _UNKNOWN)


def _is_norm(lengths: torch.Tensor, direction: torch.Tensor) -> bool:
    """Whether two tensors are what a weight norm keeps: a length for each row, or one for all, and the rows."""
    if lengths.ndim == 0:
        return True
    wide = [place for place, size in enumerate(lengths.shape) if size != 1]
    return lengths.ndim == direction.ndim and all(lengths.shape[place] == direction.shape[place] for place in wide[:2])


def _normed(name: str, direction: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """`g v / ||v||`, with the norm over the axes along which there is one length."""
    if not _is_norm(lengths, direction):
        raise InvalidModel(
            f"its lengths have shape {list(lengths.shape)}, its directions {list(direction.shape)}",
            layer=name,
            remedy="save the state dict again",
        )
    axes = [place for place in range(direction.ndim) if lengths.ndim == 0 or lengths.shape[place] == 1]
    wide = direction.float()
    norms = torch.linalg.vector_norm(wide, dim=axes, keepdim=True)
    weight: torch.Tensor = wide * (lengths.float() / norms)
    return weight.to(direction.dtype)


def _masked(name: str, tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if misfit := unlike(mask, tensor):
        raise InvalidModel(misfit, layer=name, remedy="the two are not of one model: save the state dict again")
    return torch.where(mask != 0, tensor, 0)


def _undecodable(tensor: torch.Tensor) -> str | None:
    """Why the zeros of a tensor are not known from its values; None if they are."""
    number = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    if tensor.is_quantized or (number and tensor.dtype not in PACKED) or tensor.dtype in (torch.int8, torch.bool):
        return None  # int8 is symmetric by custom
    return f"stored as {str(tensor.dtype).removeprefix('torch.')}: which values stand for zero is not in the state dict"
