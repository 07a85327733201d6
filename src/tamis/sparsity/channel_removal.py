"""Choose channels and remove them from a copy of a model, and see whether it still runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tamis.errors import first_line
from tamis.sparsity.channel_report import PrunedGroup, Removal
from tamis.sparsity.channel_rounding import kept_channels
from tamis.sparsity.dependency_graph import tensors_of, torch_pruning, traced
from tamis.sparsity.masks import is_depthwise

_CONVOLUTIONS = nn.modules.conv._ConvNd
_COUPLED = "some of its channels can only go together with others of it"
_ATTENTION_OPS = ("attention", "softmax", "bmm")


class Attempt:
    """One choice of channels, carried out on a copy of the model."""

    def __init__(
        self,
        source: nn.Module,
        inputs: tuple[Any, ...],
        removal: Removal,
        ignore: tuple[str, ...],
        loss: Callable[[nn.Module], torch.Tensor] | None,
        refused: Mapping[str, str],
        original: Mapping[str, int],
    ) -> None:
        self.source, self.inputs, self.removal = source, inputs, removal
        self._pruning = torch_pruning("channel pruning")
        self.model, self._graph = self._traced()
        self._shared = _shared_layers(self.model)
        self._names = {module: name for name, module in self.model.named_modules()}
        self.groups: list[PrunedGroup] = []
        self.candidates: list[tuple[Any, str, int, torch.Tensor]] = []  # group, name, groups in it, importance
        self._original = original
        score = self._importance(loss)
        for group in list(self._graph.get_all_groups(root_module_types=[_CONVOLUTIONS, nn.Linear])):
            name = self._names[group[0].dep.target.module]
            members = tuple(
                sorted({self._names[item.dep.target.module] for item in group if _is_layer(item, self._names)})
            )
            channels, parts = len(group[0].idxs), _parts(group)
            reason = refused.get(name) or self._refusal(group, members, ignore, channels, parts)
            values: torch.Tensor | None = None if reason else score(group)
            if values is not None:
                self.candidates.append((group, name, parts, values))
            elif reason is None:
                reason = "no batch norm scales it"
            self.groups.append(PrunedGroup(name, members, channels, channels, reason))
        self.removed: dict[str, list[int]] = {}

    def run(self) -> str | None:
        """Remove the channels; what goes wrong then, or None."""
        for group, name, lost in self._losing():
            self.removed[name] = lost
            root = group[0].dep
            self._graph.get_pruning_group(root.target.module, root.handler, lost).prune()
        _freeze_as(self.source, self.model)
        self.model.zero_grad()
        self.groups = [
            replace(entry, after=entry.before - len(self.removed.get(entry.name, ()))) for entry in self.groups
        ]
        modules = dict(self.model.named_modules())
        for entry in self.groups:
            if entry.after < entry.before and self._graph.get_out_channels(modules[entry.name]) != entry.after:
                return _COUPLED
        return self._fails(self.model)

    def alone(self, name: str) -> str | None:
        """What goes wrong if only the channels of one group are removed."""
        model, graph = self._traced()
        module = dict(model.named_modules())[name]
        handler = graph.get_pruner_of_module(module).prune_out_channels
        before = graph.get_out_channels(module)
        graph.get_pruning_group(module, handler, self.removed[name]).prune()
        if graph.get_out_channels(module) != before - len(self.removed[name]):
            return _COUPLED
        return self._fails(model)

    def _traced(self) -> tuple[nn.Module, Any]:
        model = copy.deepcopy(self.source)
        model.requires_grad_(True)
        remedy = "check that the model runs on the example inputs"
        graph = traced(self._pruning, model, self.inputs, {}, remedy=remedy)
        _freeze_as(self.source, model)
        for (_, module), (_, mine) in zip(self.source.named_modules(), model.named_modules(), strict=True):
            mine.training = module.training
        return model, graph

    def _importance(self, loss: Callable[[nn.Module], torch.Tensor] | None) -> Any:
        kinds = self._pruning.importance
        if self.removal.importance == "bn":
            return kinds.BNScaleImportance()
        if self.removal.importance == "norm":
            return kinds.GroupMagnitudeImportance(p=2)
        assert loss is not None
        statistics = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with torch.enable_grad():
            loss(self.model).backward()  # type: ignore[no-untyped-call]
        for name, buffer in statistics.items():  # of norms: measuring does not train
            self.model.get_buffer(name).copy_(buffer)
        for parameter in self.model.parameters():
            if parameter.grad is None:  # Torch-Pruning reads all of a group
                parameter.grad = torch.zeros_like(parameter)
        return kinds.GroupTaylorImportance()

    def _refusal(
        self, group: Any, members: tuple[str, ...], ignore: tuple[str, ...], channels: int, parts: int
    ) -> str | None:
        labels = [str(item.dep.target.name).lower() for item in group]
        if any(fnmatchcase(member, name) for member in members for name in ignore):
            return "ignored"
        if any(
            not item.dep.target.outputs and self._graph.is_out_channel_pruning_fn(item.dep.handler) for item in group
        ):
            return "the model gives these channels out"
        if any(isinstance(item.dep.target.module, nn.MultiheadAttention) for item in group) or any(
            operator in label for label in labels for operator in _ATTENTION_OPS
        ):
            return "they pass through attention, whose heads are kept whole"
        if shared := self._shared.intersection(members):
            return f"'{min(shared)}' shares its weight with another layer"
        if kept_channels(channels, channels, self.removal.multiple, parts) >= channels:
            return f"{channels} channels, of which a multiple of {self.removal.multiple} must be left"
        return None

    def _losing(self) -> list[tuple[Any, str, list[int]]]:
        """The candidates that lose channels, with those they lose."""
        removal = self.removal
        wanted = {name: self._wanted(name, len(group[0].idxs)) for group, name, _, _ in self.candidates}
        free = [entry for entry in self.candidates if wanted[entry[1]] is None]
        if free:
            wanted.update(self._globally(free))
        chosen = []
        for group, name, parts, values in self.candidates:
            channels = len(values)
            keep = kept_channels(channels, wanted[name] or 0.0, removal.multiple, parts)
            lost = _least(values, parts, (channels - keep) // parts, removal.block)
            if lost:
                chosen.append((group, name, lost))
        return chosen

    def _wanted(self, name: str, channels: int) -> float | None:
        """Channels to remove of a group where its own ratio decides."""
        whole = self._original.get(name, channels)
        for pattern, ratio in (self.removal.ratios or {}).items():
            if fnmatchcase(name, pattern):
                return max(whole * ratio - (whole - channels), 0.0)
        if self.removal.spread == "layer":
            return max(whole * self.removal.ratio - (whole - channels), 0.0)
        return None

    def _globally(self, entries: list[tuple[Any, str, int, torch.Tensor]]) -> dict[str, float]:
        """Channels to remove of each group, where the least important of all groups go."""
        whole = sum(self._original.get(name, len(values)) for _, name, _, values in entries)
        gone = whole - sum(len(values) for _, _, _, values in entries)
        scores = torch.cat([_shared_importance(values, parts) for _, _, parts, values in entries])
        count = round(whole * self.removal.ratio) - gone
        if count <= 0:
            return dict.fromkeys((name for _, name, _, _ in entries), 0.0)
        threshold = torch.sort(scores).values[min(count, len(scores)) - 1]
        result = {}
        for _, name, parts, values in entries:
            size = self._original.get(name, len(values))
            below = float((_shared_importance(values, parts) <= threshold).sum())
            result[name] = min(below, max(size * self.removal.most - (size - len(values)), 0.0))
        return result

    @cached_property
    def _shapes(self) -> list[torch.Size]:
        """Those of the outputs of the model as it was."""
        return [leaf.shape for leaf in tensors_of(copy.deepcopy(self.source).eval()(*self.inputs))]

    def _fails(self, model: nn.Module) -> str | None:
        training = [(module, module.training) for module in model.modules()]
        try:
            with torch.no_grad():
                after = [leaf.shape for leaf in tensors_of(model.eval()(*self.inputs))]
                before = self._shapes
        except Exception as error:
            return f"the model does not run without them: {first_line(error)}"
        finally:
            for module, mode in training:
                module.training = mode
        return None if after == before else "the shape of the model's output would change"


def _least(values: torch.Tensor, parts: int, count: int, block: int) -> list[int]:
    """The least important `count` channels of each of `parts` groups, in aligned blocks; the same places in each."""
    local = values.view(parts, -1).mean(0)
    if len(local) % block or count % block:
        count, local = 0, local[:0]
    order = torch.argsort(local.view(-1, block).sum(1), stable=True)[: count // block]
    places = (order.unsqueeze(1) * block + torch.arange(block, device=order.device)).flatten().cpu()
    size = len(values) // parts
    return sorted(int(place) + part * size for part in range(parts) for place in places)


def _shared_importance(values: torch.Tensor, parts: int) -> torch.Tensor:
    """Importance of each channel; those of one place in all groups of a convolution go together and share it."""
    return values.detach().float().cpu().view(parts, -1).mean(0).repeat(parts)


def _freeze_as(source: nn.Module, model: nn.Module) -> None:
    """Torch-Pruning makes new parameters, all of which are trained."""
    for name, parameter in source.named_parameters():
        model.get_parameter(name).requires_grad_(parameter.requires_grad)


def _shared_layers(model: nn.Module) -> set[str]:
    """Names of modules that own a parameter together with others."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _parts(group: Any) -> int:
    """Into how many equal parts the convolutions and norms of a group divide its channels."""
    parts = 1
    for item in group:
        module = item.dep.target.module
        if isinstance(module, _CONVOLUTIONS) and not is_depthwise(module):
            parts = math.lcm(parts, module.groups)
        elif isinstance(module, nn.GroupNorm):
            parts = math.lcm(parts, module.num_groups)
    return parts


def _is_layer(item: Any, names: Mapping[nn.Module, str]) -> bool:
    return item.dep.target.module in names
